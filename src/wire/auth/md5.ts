/**
 * Postgres's md5 authentication, both sides (src/common/md5_common.c).
 * Invariant: what is compared is compared in constant time. It is as weak as md5: offered where an operator stored such hashes.
 */
import { createHash } from 'node:crypto';
import { equal } from './scram-keys.ts';

function md5(...parts: readonly (string | Buffer)[]): string {
  const hash = createHash('md5');
  for (const part of parts) hash.update(part);
  return hash.digest('hex');
}

/** `md5` and 32 hex digits, as in pg_authid.rolpassword. */
export function isMd5Hash(secret: string): boolean {
  return /^md5[0-9a-f]{32}$/.test(secret);
}

/** What is stored of a password. */
export function md5Hash(user: string, password: string | Buffer): string {
  return `md5${md5(password, user)}`;
}

/** The answer to a challenge of four bytes, from what is stored. */
export function md5Answer(hash: string, challenge: Buffer): string {
  return `md5${md5(hash.slice(3), challenge)}`;
}

export function md5Fits(hash: string, challenge: Buffer, answer: Buffer): boolean {
  return equal(Buffer.from(md5Answer(hash, challenge), 'latin1'), answer);
}
