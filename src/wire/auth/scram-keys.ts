/**
 * The keys of SCRAM-SHA-256 (RFC 5802, section 3; RFC 7677) and the verifier text that Postgres stores of them.
 * Invariant: keys are compared in constant time, and derived off the main thread: 4,096 rounds take milliseconds.
 */
import { createHash, createHmac, pbkdf2, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import { preparedPassword } from './saslprep.ts';

export const scramMechanism = 'SCRAM-SHA-256';
export const keyLength = 32;
/** As SCRAM_SHA_256_DEFAULT_ITERATIONS and SCRAM_DEFAULT_SALT_LEN of Postgres. */
export const defaultIterations = 4096;
export const defaultSaltLength = 16;

/** What a server knows of a password. */
export interface ScramVerifier {
  readonly iterations: number;
  readonly salt: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

/** What suffices to log in as a client, besides the words of the server. */
export interface ScramKeys {
  readonly clientKey: Buffer;
  readonly serverKey: Buffer;
}

export function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest();
}

export function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest();
}

export function xor(a: Buffer, b: Buffer): Buffer {
  const result = Buffer.alloc(a.length);
  for (let i = 0; i < a.length; i++) result[i] = (a[i] ?? 0) ^ (b[i] ?? 0);
  return result;
}

/** Constant time for contents; lengths may be told apart. */
export function equal(a: Buffer, b: Buffer): boolean {
  return a.length === b.length && timingSafeEqual(a, b);
}

/** Base64 as Postgres reads it: nothing but the alphabet, padded. Null when it is something else. */
export function decodeBase64(text: string): Buffer | null {
  return text.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(text) ? Buffer.from(text, 'base64') : null;
}

const derive = promisify(pbkdf2);

/** Both keys of a password. */
export async function scramKeys(password: string | Buffer, salt: Buffer, iterations: number): Promise<ScramKeys> {
  const salted = await derive(preparedPassword(password), salt, iterations, keyLength, 'sha256');
  return { clientKey: hmac(salted, 'Client Key'), serverKey: hmac(salted, 'Server Key') };
}

export async function verifierOf(password: string | Buffer, salt: Buffer, iterations = defaultIterations): Promise<ScramVerifier> {
  const { clientKey, serverKey } = await scramKeys(password, salt, iterations);
  return { iterations, salt, storedKey: sha256(clientKey), serverKey };
}

/** `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as in pg_authid.rolpassword. Null when the text is something else. */
export function parseVerifier(text: string): ScramVerifier | null {
  const match = /^SCRAM-SHA-256\$([1-9][0-9]{0,9}):([^$:]+)\$([^$:]+):([^$:]+)$/.exec(text);
  if (match === null) return null;
  const iterations = Number(match[1]);
  const [salt, storedKey, serverKey] = [match[2], match[3], match[4]].map((part) => decodeBase64(part ?? ''));
  if (iterations > 0x7fffffff || !salt || storedKey?.length !== keyLength || serverKey?.length !== keyLength) return null;
  return { iterations, salt, storedKey, serverKey };
}

export function verifierText({ iterations, salt, storedKey, serverKey }: ScramVerifier): string {
  return `${scramMechanism}$${iterations}:${salt.toString('base64')}$${storedKey.toString('base64')}:${serverKey.toString('base64')}`;
}

/**
 * A verifier that no password fits, for a role that is not known or has none: always the same for one role, so that asking twice does not
 * tell it from a real one (scram_mock_salt in Postgres). `key` is secret and the same in all processes.
 */
export function mockVerifier(user: string, key: Buffer): ScramVerifier {
  return {
    iterations: defaultIterations,
    salt: mockSalt(user, key),
    storedKey: hmac(key, `stored ${user}`),
    serverKey: hmac(key, `server ${user}`),
  };
}

/** The salt of a role that has none of its own: it is mocked, or its password is stored in clear. */
export function mockSalt(user: string, key: Buffer): Buffer {
  return hmac(key, `salt ${user}`).subarray(0, defaultSaltLength);
}
