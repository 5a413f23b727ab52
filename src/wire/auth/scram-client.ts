/**
 * The client's side of SCRAM-SHA-256: a pure state machine, as src/interfaces/libpq/fe-auth-scram.c.
 * Invariant: the exchange is complete only when the server has proved that it knows the verifier.
 * The gs2 flag is always 'n': no channel binding, on TLS as well (the flag 'y' would have a server on TLS refuse).
 */
import { decodeBase64, equal, hmac, keyLength, type ScramKeys, scramKeys, sha256, xor } from './scram-keys.ts';

/** Something a server said that a client must not accept. */
export class ScramServerError extends Error {
  override readonly name = 'ScramServerError';
}

/** More than any server asks for in earnest: it would keep a thread busy for a minute. */
const mostIterations = 100_000_000;

export class ScramClient {
  readonly #secret: { readonly password: string } | ScramKeys;
  readonly #nonce: string;
  readonly #bare: string;
  #signature: Buffer | null = null;

  /** From a password, or from keys recovered from another exchange over the same verifier. `nonce`: 18 random bytes in base64. */
  constructor(secret: { readonly password: string } | ScramKeys, nonce: string) {
    this.#secret = secret;
    this.#nonce = nonce;
    // The server takes the name from the startup packet.
    this.#bare = `n=,r=${nonce}`;
  }

  /** The client-first-message. */
  first(): string {
    return `n,,${this.#bare}`;
  }

  /** server-first-message in, client-final-message out. Rejects with ScramServerError. */
  async final(serverFirst: string): Promise<string> {
    const match = /^r=([\x21-\x2b\x2d-\x7e]+),s=([^,]+),i=([1-9][0-9]{0,9})(?:,.*)?$/s.exec(serverFirst);
    const salt = decodeBase64(match?.[2] ?? '?');
    if (match === null || salt === null) throw new ScramServerError('malformed SCRAM message of the server');
    const nonce = match[1] ?? '';
    const iterations = Number(match[3]);
    if (!nonce.startsWith(this.#nonce) || nonce.length === this.#nonce.length) {
      throw new ScramServerError('invalid SCRAM response of the server (nonce mismatch)');
    }
    if (iterations > mostIterations) throw new ScramServerError(`the server asks for ${iterations} SCRAM iterations`);
    const secret = this.#secret;
    const { clientKey, serverKey } = 'password' in secret ? await scramKeys(secret.password, salt, iterations) : secret;
    const withoutProof = `c=biws,r=${nonce}`;
    const transcript = `${this.#bare},${serverFirst},${withoutProof}`;
    this.#signature = hmac(serverKey, transcript);
    const proof = xor(clientKey, hmac(sha256(clientKey), transcript));
    return `${withoutProof},p=${proof.toString('base64')}`;
  }

  /** The server-final-message. Throws ScramServerError unless it proves that the server knows the verifier. */
  verify(serverFinal: string): void {
    const error = /^e=([^,]*)/.exec(serverFinal);
    if (error !== null) throw new ScramServerError(`the server refused the SCRAM exchange: ${error[1]?.slice(0, 100)}`);
    const match = /^v=([^,]+)(?:,.*)?$/s.exec(serverFinal);
    const signature = decodeBase64(match?.[1] ?? '?');
    if (signature?.length !== keyLength) throw new ScramServerError('malformed SCRAM message of the server');
    if (this.#signature === null || !equal(signature, this.#signature)) throw new ScramServerError('incorrect server signature');
  }
}
