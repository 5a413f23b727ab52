/**
 * The server's side of SCRAM-SHA-256: a pure state machine, as src/backend/libpq/auth-scram.c.
 * Invariant: `accepted` comes only after a proof that fits the verifier; a doomed exchange looks like any other up to the refusal.
 * Channel binding is never offered, so a client that asks for it is refused.
 */
import { decodeBase64, equal, hmac, keyLength, type ScramKeys, type ScramVerifier, sha256, xor } from './scram-keys.ts';

/** A message that breaks the rules. `message` and `detail` are those of Postgres. */
export class ScramProtocolError extends Error {
  readonly detail: string;
  constructor(message: string, detail: string) {
    super(message);
    this.name = 'ScramProtocolError';
    this.detail = detail;
  }
}

function malformed(detail: string): ScramProtocolError {
  return new ScramProtocolError('malformed SCRAM message', detail);
}

export type ScramOutcome =
  | {
      readonly kind: 'accepted';
      /** The server-final-message. */
      readonly message: string;
      /** With the recovered ClientKey one can log in wherever the same verifier is stored. */
      readonly keys: ScramKeys;
    }
  | { readonly kind: 'refused' };

/** How the client stands to channel binding: n it cannot, y it can and believes the server cannot. */
export type BindingFlag = 'n' | 'y';

/** The gs2 flag of a client-first-message; null when it is 'p' or nothing that can be read. */
export function bindingFlag(clientFirst: string): BindingFlag | null {
  const flag = clientFirst.slice(0, 2);
  return flag === 'n,' ? 'n' : flag === 'y,' ? 'y' : null;
}

export class ScramServer {
  readonly #verifier: ScramVerifier;
  readonly #nonce: string;
  readonly #doomed: boolean;
  #state: 'first' | 'final' | 'over' = 'first';
  #header = '';
  #clientFirstBare = '';
  #serverFirst = '';
  #fullNonce = '';

  /** `nonce`: 18 random bytes in base64 (as Postgres). `doomed`: refuse in the end, whatever the proof. */
  constructor(verifier: ScramVerifier, nonce: string, options: { readonly doomed?: boolean } = {}) {
    this.#verifier = verifier;
    this.#nonce = nonce;
    this.#doomed = options.doomed ?? false;
  }

  /** client-first-message in, server-first-message out. Throws ScramProtocolError. */
  first(message: string): string {
    if (this.#state !== 'first') throw malformed('The message comes out of turn.');
    this.#state = 'over';
    const match = /^([^,]*),([^,]*),(.*)$/s.exec(message);
    if (match === null) throw malformed('The message has no complete header.');
    const [, flag = '', authorization = '', bare = ''] = match;
    if (flag.startsWith('p=')) {
      throw malformed('The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.');
    }
    if (flag !== 'n' && flag !== 'y') throw malformed(`Unexpected channel-binding flag "${printable(flag)}".`);
    if (authorization !== '') {
      throw new ScramProtocolError('client uses authorization identity, but it is not supported', 'Leave it empty.');
    }
    const attributes = bare.split(',');
    if (attributes[0]?.startsWith('m=')) {
      throw new ScramProtocolError('client requires an unsupported SCRAM extension', 'No extension is known.');
    }
    // The name is that of the startup packet, as in Postgres; what is said here is not looked at.
    if (!attributes[0]?.startsWith('n=')) throw malformed('Attribute "n" was expected.');
    const nonce = attributes[1];
    if (!nonce?.startsWith('r=')) throw malformed('Attribute "r" was expected.');
    const clientNonce = nonce.slice(2);
    if (!/^[\x21-\x7e]+$/.test(clientNonce)) throw new ScramProtocolError('non-printable characters in SCRAM nonce', 'It has others.');
    this.#header = `${flag},,`;
    this.#clientFirstBare = bare;
    this.#fullNonce = clientNonce + this.#nonce;
    this.#serverFirst = `r=${this.#fullNonce},s=${this.#verifier.salt.toString('base64')},i=${this.#verifier.iterations}`;
    this.#state = 'final';
    return this.#serverFirst;
  }

  /** client-final-message in. Throws ScramProtocolError. */
  final(message: string): ScramOutcome {
    if (this.#state !== 'final') throw malformed('The message comes out of turn.');
    this.#state = 'over';
    const proofAt = message.lastIndexOf(',p=');
    if (proofAt === -1) throw malformed('Attribute "p" was expected.');
    const withoutProof = message.slice(0, proofAt);
    const [binding, nonce] = withoutProof.split(',');
    if (!binding?.startsWith('c=')) throw malformed('Attribute "c" was expected.');
    if (!nonce?.startsWith('r=')) throw malformed('Attribute "r" was expected.');
    if (binding.slice(2) !== Buffer.from(this.#header).toString('base64')) {
      throw new ScramProtocolError(
        'unexpected SCRAM channel-binding attribute in client-final-message',
        'It differs from the first message.',
      );
    }
    if (nonce.slice(2) !== this.#fullNonce) throw new ScramProtocolError('invalid SCRAM response', 'Nonce does not match.');
    const proof = decodeBase64(message.slice(proofAt + 3));
    if (proof?.length !== keyLength) throw malformed('Malformed proof in client-final-message.');
    const { storedKey, serverKey } = this.#verifier;
    const transcript = `${this.#clientFirstBare},${this.#serverFirst},${withoutProof}`;
    const clientKey = xor(proof, hmac(storedKey, transcript));
    const fits = equal(sha256(clientKey), storedKey);
    if (!fits || this.#doomed) return { kind: 'refused' };
    return {
      kind: 'accepted',
      message: `v=${hmac(serverKey, transcript).toString('base64')}`,
      keys: { clientKey, serverKey },
    };
  }
}

/** What a client sent, fit for an error message. */
function printable(text: string): string {
  return text.slice(0, 20).replace(/[^\x21-\x7e]/g, '?');
}
