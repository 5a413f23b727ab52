/** Secrets at rest and signatures of catalog writes. */
import { expect, test } from 'vitest';
import { openAddress } from '../../../src/catalog/connection-address.ts';
import { decryptSecret, encryptSecret, signStatements } from '../../../src/catalog/encryption.ts';

const key = '11'.repeat(32);

test('a secret opens with its key and id only, and never looks the same twice', () => {
  const sealed = encryptSecret(key, '7', 'pässword');
  expect(sealed).not.toContain('pässword');
  expect(encryptSecret(key, '7', 'pässword')).not.toBe(sealed);
  expect(decryptSecret(key, '7', sealed)).toBe('pässword');
  expect(decryptSecret('22'.repeat(32), '7', sealed)).toBeNull();
  expect(decryptSecret(key, '8', sealed)).toBeNull();
  expect(decryptSecret(key, '7', `${sealed.slice(0, -4)}AAAA`)).toBeNull();
  expect(decryptSecret(key, '7', 'v0:nonsense')).toBeNull();
});

test('a signature is for one transaction and one text', () => {
  const signature = signStatements(key, '100', ['SELECT 1'], '{}');
  expect(signStatements(key, '100', ['SELECT 1'], '{}')).toBe(signature);
  expect(signStatements(key, '101', ['SELECT 1'], '{}')).not.toBe(signature);
  expect(signStatements(key, '100', ['SELECT 2'], '{}')).not.toBe(signature);
  expect(signStatements(key, '100', ['SELECT 1'], '{"a":1}')).not.toBe(signature);
});

test('an address takes its password from the secret, and says so when the key has changed', () => {
  const options = {
    HOST: { value: 'db' },
    USER: { value: 'u' },
    DATABASE: { value: 'd' },
    PASSWORD: { secret: '7' },
    'SSL MODE': { value: 'verify_full' },
  };
  const sealed = { 7: { name: 'pw', value: encryptSecret(key, '7', 'x') } };
  expect(openAddress(key, options, sealed)).toEqual({
    host: 'db',
    port: 5432,
    user: 'u',
    database: 'd',
    password: 'x',
    ssl: { mode: 'verify-full' },
  });
  expect(() => openAddress('22'.repeat(32), options, sealed)).toThrow('secret "pw" cannot be decrypted with the current key');
  expect(() => openAddress(key, { ...options, PORT: { value: 'seven' } }, sealed)).toThrow('invalid PORT: seven');
  expect(() => openAddress(key, { ...options, 'SSL MODE': { value: 'maybe' } }, sealed)).toThrow('unknown SSL MODE "maybe"');
});
