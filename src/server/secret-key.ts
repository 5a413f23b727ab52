/**
 * The key under which secrets are encrypted at rest.
 * Invariant: it never changes by itself: a key that is there but cannot be read is an error, never a reason to make another.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { reason } from '../config-loading.ts';

/**
 * 32 bytes in hex: from MILLRACE_SECRET_KEY, the file MILLRACE_SECRET_KEY_FILE names, or `secret-key` in the data directory,
 * which is made at the first start.
 */
export function loadSecretKey(dataDir: string, environment: Readonly<Record<string, string | undefined>>): string {
  const given = environment['MILLRACE_SECRET_KEY'];
  if (given !== undefined && given !== '') return parseKey(given, 'MILLRACE_SECRET_KEY');
  const file = environment['MILLRACE_SECRET_KEY_FILE'];
  if (file !== undefined && file !== '') return parseKey(readKey(file), file);
  const own = join(dataDir, 'secret-key');
  try {
    mkdirSync(dataDir, { recursive: true });
    // Fails when the file is there: two processes starting at once agree on the first one's key.
    writeFileSync(own, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600, flag: 'wx' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST')
      throw new Error(`cannot write to the data directory ${dataDir}: ${reason(error)}`, { cause: error });
  }
  return parseKey(readKey(own), own);
}

function readKey(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new Error(`cannot read the secret key in ${path}: ${reason(error)}`, { cause: error });
  }
}

function parseKey(text: string, where: string): string {
  const trimmed = text.trim();
  if (/^[0-9a-f]{64}$/i.test(trimmed)) return trimmed.toLowerCase();
  const bytes = /^[A-Za-z0-9+/_-]+={0,2}$/.test(trimmed) ? Buffer.from(trimmed, 'base64') : Buffer.alloc(0);
  if (bytes.length !== 32)
    throw new Error(`${where} does not hold a key of 32 bytes in hex or base64 (make one with: openssl rand -hex 32)`);
  return bytes.toString('hex');
}
