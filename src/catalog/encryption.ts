/**
 * Secrets at rest. Invariant: plaintext exists only in the memory of a Millrace process; the catalog holds
 * `v1:<iv>:<tag>:<ciphertext>` (base64), AES-256-GCM, bound to the id of the secret so that rows cannot be swapped.
 */
import { createCipheriv, createDecipheriv, createHmac, randomBytes } from 'node:crypto';

/** `secretKey`: 32 bytes as hex (WorkerConfig.secretKey). */
export function encryptSecret(secretKey: string, id: string, plaintext: string): string {
  const iv = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', Buffer.from(secretKey, 'hex'), iv);
  cipher.setAAD(Buffer.from(`secret:${id}`));
  const sealed = Buffer.concat([cipher.update(plaintext, 'utf8'), cipher.final()]);
  return ['v1', iv.toString('base64'), cipher.getAuthTag().toString('base64'), sealed.toString('base64')].join(':');
}

/** The plaintext, or null when the key is not the one the secret was made with (or the row was tampered with). */
export function decryptSecret(secretKey: string, id: string, stored: string): string | null {
  const [version, iv, tag, sealed] = stored.split(':');
  if (version !== 'v1' || iv === undefined || tag === undefined || sealed === undefined) return null;
  try {
    const decipher = createDecipheriv('aes-256-gcm', Buffer.from(secretKey, 'hex'), Buffer.from(iv, 'base64'));
    decipher.setAAD(Buffer.from(`secret:${id}`));
    decipher.setAuthTag(Buffer.from(tag, 'base64'));
    return Buffer.concat([decipher.update(Buffer.from(sealed, 'base64')), decipher.final()]).toString('utf8');
  } catch {
    return null;
  }
}

/** The key that signs catalog writes, derived so that a leak of one says nothing about the other. */
export function serviceKey(secretKey: string): Buffer {
  return createHmac('sha256', Buffer.from(secretKey, 'hex')).update('millrace catalog writes').digest();
}

/** Signature of `statements` with `argumentsText` for the transaction `xid`, as millrace.perform checks it. */
export function signStatements(secretKey: string, xid: string, statements: readonly string[], argumentsText: string): string {
  return createHmac('sha256', serviceKey(secretKey))
    .update(`${xid}\n${statements.join('\n')}\n${argumentsText}`)
    .digest('hex');
}
