/**
 * Authenticates a client before it has a session, as the upstream would (src/backend/libpq/auth.c) or as PgBouncer does.
 * Invariant: a client that is not authenticated has sent nothing but answers of at most 64 kB, one at a time, and cannot tell a role that
 * does not exist from a wrong password. Secrets are not logged. How long it may take is the caller's business.
 */
import { randomBytes } from 'node:crypto';
import { TLSSocket } from 'node:tls';
import { type MillraceError, millraceError } from '../../errors.ts';
import type { Logger } from '../../log.ts';
import { certificateName } from '../client-tls.ts';
import { errorResponse } from '../encode.ts';
import type { AuthType } from '../pool/settings.ts';
import { longestAuthenticationMessage } from '../startup.ts';
import type { PeerSocket } from '../static-reader.ts';
import type { ServerCredentials } from './credentials.ts';
import { isMd5Hash, md5Fits, md5Hash } from './md5.ts';
import { ConversationEnded, MessageReader } from './message-reader.ts';
import { answerOf, authentication, initialResponse, Question, scramExchange, scramOffer } from './scram-conversation.ts';
import { equal, mockSalt, mockVerifier, parseVerifier, type ScramVerifier, scramKeys, sha256, verifierOf } from './scram-keys.ts';
import { ScramProtocolError } from './scram-server.ts';

export const authenticationOk = authentication(Question.ok);

export interface ClientAuthenticatorOptions {
  /** Password, md5 hash or SCRAM verifier of a role; null when there is none. Does not reject. */
  secretOf(user: string): Promise<string | null>;
  /** Whether that is all there is to say of the role. Does not reject. */
  isCertain(user: string): Promise<boolean>;
  /** What is known of a role may be out of date: its login failed. */
  forget(user: string): void;
  /** 32 secret bytes, the same in all processes: see mockVerifier. */
  readonly mockKey: Buffer;
  readonly log: Logger;
}

export interface AuthenticatedClient {
  readonly credentials: ServerCredentials;
  /** What the client sent behind its last answer. */
  readonly rest: Buffer;
}

/** A client that was told goodbye and does not hang up is cut off. */
const lingerTime = 5_000;
/** Clients log in again and again: keys of passwords stored in clear are derived once. */
const mostVerifiers = 10_000;

export class ClientAuthenticator {
  readonly #options: ClientAuthenticatorOptions;
  readonly #verifiers = new Map<string, { readonly password: string; readonly verifier: ScramVerifier }>();

  constructor(options: ClientAuthenticatorOptions) {
    this.#options = options;
  }

  /** Whether a client of this role can be authenticated here, or refused as the upstream would refuse it. */
  decides(user: string): Promise<boolean> {
    return this.#options.isCertain(user);
  }

  /** What is known of a role may be out of date. */
  forget(user: string): void {
    this.#options.forget(user);
  }

  /**
   * The conversation up to where AuthenticationOk is due: the caller sends it (`authenticationOk`). `initial` came behind the startup
   * packet. Null: the client was refused, and told so, or it left; its connection is being closed. The socket is paused afterwards.
   */
  async authenticate(peer: PeerSocket, user: string, authType: AuthType, initial: Buffer): Promise<AuthenticatedClient | null> {
    const { log } = this.#options;
    const reader = new MessageReader(peer, initial);
    try {
      const credentials = await this.#credentials(peer, reader, user, authType);
      const rest = reader.release();
      if (credentials !== null) return { credentials, rest };
      this.#options.forget(user);
      log.warn({ user, authType }, 'a client could not be authenticated');
      refuseClient(
        peer,
        millraceError(authType === 'cert' ? 'certificate_authentication_failed' : 'password_authentication_failed', { user }),
      );
    } catch (error) {
      reader.release();
      const told = refusalOf(error);
      if (told !== null) refuseClient(peer, told);
      else {
        peer.socket.destroy();
        if (!(error instanceof ConversationEnded)) log.error({ err: error }, 'the authentication of a client failed unexpectedly');
      }
    }
    return null;
  }

  async #credentials(peer: PeerSocket, reader: MessageReader, user: string, authType: AuthType): Promise<ServerCredentials | null> {
    if (authType === 'cert') {
      const { socket } = peer;
      if (!(socket instanceof TLSSocket) || certificateName(socket) !== user) return null;
      return stored(await this.#options.secretOf(user));
    }
    const secret = await this.#options.secretOf(user);
    switch (authType) {
      case 'trust':
        return stored(secret);
      case 'plain':
        return await clearText(peer, reader, user, secret);
      case 'md5':
        // As Postgres and PgBouncer: a role with a SCRAM verifier uses SCRAM, and so does one that is not known.
        return secret === null || parseVerifier(secret) !== null
          ? await this.#scram(peer, reader, user, secret)
          : await md5(peer, reader, user, secret);
      case 'scram-sha-256':
        return await this.#scram(peer, reader, user, secret);
    }
  }

  async #scram(peer: PeerSocket, reader: MessageReader, user: string, secret: string | null): Promise<ServerCredentials | null> {
    peer.socket.write(scramOffer);
    const initial = await initialResponse(reader);
    const verifier = await this.#verifier(user, secret);
    const keys = await scramExchange(
      peer.socket,
      reader,
      initial,
      verifier ?? mockVerifier(user, this.#options.mockKey),
      verifier === null,
    );
    if (keys === null) return null;
    // The keys of a password in clear belong to a salt of ours; the upstream has another.
    return secret === null || parseVerifier(secret) !== null ? { kind: 'scram', ...keys } : { kind: 'password', password: secret };
  }

  /** Null when no proof can fit: there is no secret, or one that SCRAM cannot use. */
  async #verifier(user: string, secret: string | null): Promise<ScramVerifier | null> {
    if (secret === null || secret === '' || isMd5Hash(secret)) return null;
    const parsed = parseVerifier(secret);
    if (parsed !== null) return parsed;
    const known = this.#verifiers.get(user);
    if (known?.password === secret) return known.verifier;
    const verifier = await verifierOf(secret, mockSalt(user, this.#options.mockKey));
    if (this.#verifiers.size >= mostVerifiers) this.#verifiers.clear();
    this.#verifiers.set(user, { password: secret, verifier });
    return verifier;
  }
}

/** Credentials for a client that did not have to show a password. */
function stored(secret: string | null): ServerCredentials {
  if (secret === null || parseVerifier(secret) !== null) return { kind: 'none' };
  return isMd5Hash(secret) ? { kind: 'md5', hash: secret } : { kind: 'password', password: secret };
}

async function md5(peer: PeerSocket, reader: MessageReader, user: string, secret: string): Promise<ServerCredentials | null> {
  const challenge = randomBytes(4);
  peer.socket.write(authentication(Question.md5, challenge));
  const answer = passwordIn(await answerOf(reader, longestAuthenticationMessage));
  if (secret === '' || !md5Fits(isMd5Hash(secret) ? secret : md5Hash(user, secret), challenge, answer)) return null;
  return stored(secret);
}

async function clearText(peer: PeerSocket, reader: MessageReader, user: string, secret: string | null): Promise<ServerCredentials | null> {
  peer.socket.write(authentication(Question.cleartext));
  const answer = passwordIn(await answerOf(reader, longestAuthenticationMessage));
  if (secret === null || answer.length === 0) return null;
  return (await passwordFits(user, secret, answer)) ? { kind: 'password', password: answer.toString('utf8') } : null;
}

/** As plain_crypt_verify of Postgres. */
async function passwordFits(user: string, secret: string, password: Buffer): Promise<boolean> {
  const verifier = parseVerifier(secret);
  if (verifier !== null) {
    const { clientKey } = await scramKeys(password, verifier.salt, verifier.iterations);
    return equal(sha256(clientKey), verifier.storedKey);
  }
  if (isMd5Hash(secret)) return equal(Buffer.from(md5Hash(user, password)), Buffer.from(secret));
  // Hashes are compared, which are of one length.
  return equal(sha256(password), sha256(Buffer.from(secret, 'utf8')));
}

/** The one string of a PasswordMessage. */
function passwordIn(message: Buffer): Buffer {
  if (message.indexOf(0, 5) !== message.length - 1) throw new ScramProtocolError('invalid password packet size', '');
  return message.subarray(5, -1);
}

function refusalOf(error: unknown): MillraceError | null {
  if (error instanceof ScramProtocolError) return millraceError('protocol_violation', { message: error.message, detail: error.detail });
  if (error instanceof ConversationEnded && error.tooLong)
    return millraceError('protocol_violation', { message: 'expected a password response' });
  return null;
}

/** Says why and hangs up, within `lingerTime`. What the client still sends is read and thrown away. */
export function refuseClient({ socket, reader }: PeerSocket, error: MillraceError | Buffer): void {
  socket.on('error', () => socket.destroy()).on('end', () => socket.destroy());
  if (reader !== null) reader.receive = () => false;
  socket.end(Buffer.isBuffer(error) ? error : errorResponse(error.fields, 'utf8', 'FATAL'));
  socket.resume();
  const timer = setTimeout(() => socket.destroy(), lingerTime);
  socket.once('close', () => clearTimeout(timer));
}
