/** A stored connection as an address. Invariant: pure; secrets are opened here and nowhere else. */
import type { ServerAddress, SslMode } from '../config.ts';
import { millraceError } from '../errors.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { decryptSecret } from './encryption.ts';

/** Option name -> stored value. */
export type ConnectionOptions = Readonly<Record<string, { readonly value: string } | { readonly secret: string }>>;

const sslModes: Readonly<Record<string, SslMode>> = {
  disable: 'disable',
  prefer: 'prefer',
  require: 'require',
  'verify-ca': 'verify-ca',
  'verify-full': 'verify-full',
};

/** Secret id -> its name and ciphertext. */
export type SealedSecrets = Readonly<Record<string, { readonly name: string; readonly value: string }>>;

/** Pure: the address that options and (still sealed) secrets describe. */
export function openAddress(secretKey: string, options: ConnectionOptions, sealed: SealedSecrets): ServerAddress {
  const plain = (name: string): string | undefined => {
    const option = options[name];
    if (option === undefined) return undefined;
    if ('value' in option) return option.value;
    const secret = sealed[option.secret];
    const opened = secret === undefined ? null : decryptSecret(secretKey, option.secret, secret.value);
    if (opened === null) {
      throw millraceError('secret_unreadable', { name: secret?.name ?? option.secret, name_quoted: quoteIdentifier(secret?.name ?? '') });
    }
    return opened;
  };
  const port = Number(plain('PORT') ?? 5432);
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    throw millraceError('invalid_option', { message: `invalid PORT: ${plain('PORT')}`, hint: 'Give a number from 1 to 65535.' });
  }
  const asked = (plain('SSL MODE') ?? 'prefer').toLowerCase().replaceAll('_', '-');
  const mode = sslModes[asked];
  if (mode === undefined) {
    throw millraceError('invalid_option', {
      message: `invalid CONNECTION: unknown SSL MODE "${asked}"`,
      hint: `The modes are: ${Object.keys(sslModes).join(', ')}.`,
    });
  }
  const password = plain('PASSWORD');
  const ca = plain('SSL CERTIFICATE AUTHORITY');
  const cert = plain('SSL CERTIFICATE');
  const key = plain('SSL KEY');
  return {
    host: plain('HOST') ?? '',
    port,
    user: plain('USER') ?? '',
    database: plain('DATABASE') ?? '',
    ...(password === undefined ? {} : { password }),
    ssl: { mode, ...(ca === undefined ? {} : { ca }), ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) },
  };
}
