/** A stored connection as an address. Invariant: pure; secrets are opened here and nowhere else. */
import type { ServerAddress, SslMode } from '../config.ts';
import { millraceError } from '../errors.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { decryptSecret } from './encryption.ts';

/** Option name -> stored value. */
export type ConnectionOptions = Readonly<Record<string, { readonly value: string } | { readonly secret: string }>>;

/** Certificates as PEM texts. */
export interface Certificates {
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
}

export type SaslMechanism = 'PLAIN' | 'SCRAM-SHA-256' | 'SCRAM-SHA-512';

export interface KafkaAddress {
  /** `host:port` each; an IPv6 address in brackets. */
  readonly brokers: readonly string[];
  /** null: plain text. */
  readonly tls: (Certificates & { readonly verify: true }) | null;
  readonly sasl: { readonly mechanism: SaslMechanism; readonly username: string; readonly password: string } | null;
  /** null: `_millrace-progress-<database oid>-<connection id>` */
  readonly progressTopic: string | null;
  /** null: the broker's default. */
  readonly progressReplicationFactor: number | null;
}

export interface RegistryAddress {
  /** Scheme, host and port. */
  readonly url: string;
  readonly login: { readonly username: string; readonly password: string } | null;
  /** null: http. */
  readonly tls: (Certificates & { readonly verify: true }) | null;
}

const sslModes: Readonly<Record<string, SslMode>> = {
  disable: 'disable',
  prefer: 'prefer',
  require: 'require',
  'verify-ca': 'verify-ca',
  'verify-full': 'verify-full',
};

/** Secret id -> its name and ciphertext. */
export type SealedSecrets = Readonly<Record<string, { readonly name: string; readonly value: string }>>;

/** A secret by its id. Raises secret_unreadable when the key has changed, or it is gone. */
export function openSecret(secretKey: string, id: string, sealed: SealedSecrets): string {
  const secret = sealed[id];
  const opened = secret === undefined ? null : decryptSecret(secretKey, id, secret.value);
  if (opened === null)
    throw millraceError('secret_unreadable', { name: secret?.name ?? id, name_quoted: quoteIdentifier(secret?.name ?? id) });
  return opened;
}

type Plain = (name: string) => string | undefined;

/** The values of options, secrets opened. */
function opener(secretKey: string, options: ConnectionOptions, sealed: SealedSecrets): Plain {
  return (name) => {
    const option = options[name];
    if (option === undefined) return undefined;
    if ('value' in option) return option.value;
    return openSecret(secretKey, option.secret, sealed);
  };
}

function certificates(plain: Plain): Certificates {
  const ca = plain('SSL CERTIFICATE AUTHORITY');
  const cert = plain('SSL CERTIFICATE');
  const key = plain('SSL KEY');
  return { ...(ca === undefined ? {} : { ca }), ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) };
}

/** Pure: the address that options and (still sealed) secrets describe. */
export function openAddress(secretKey: string, options: ConnectionOptions, sealed: SealedSecrets): ServerAddress {
  const plain = opener(secretKey, options, sealed);
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
  return {
    host: plain('HOST') ?? '',
    port,
    user: plain('USER') ?? '',
    database: plain('DATABASE') ?? '',
    ...(password === undefined ? {} : { password }),
    ssl: { mode, ...certificates(plain) },
  };
}

const protocols = ['PLAINTEXT', 'SSL', 'SASL_PLAINTEXT', 'SASL_SSL'];
const mechanisms: readonly SaslMechanism[] = ['PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512'];

/** As openAddress, for a connection TO KAFKA. */
export function openKafkaAddress(secretKey: string, options: ConnectionOptions, sealed: SealedSecrets): KafkaAddress {
  const plain = opener(secretKey, options, sealed);
  const username = plain('SASL USERNAME');
  const password = plain('SASL PASSWORD');
  const asked = plain('SASL MECHANISMS');
  const wantsSasl = username !== undefined || password !== undefined || asked !== undefined;
  const protocol = (plain('SECURITY PROTOCOL') ?? (wantsSasl ? 'SASL_SSL' : 'SSL')).toUpperCase();
  if (!protocols.includes(protocol)) {
    throw millraceError('invalid_option', {
      message: `invalid CONNECTION: unknown SECURITY PROTOCOL "${plain('SECURITY PROTOCOL')}"`,
      hint: `The protocols are: ${protocols.join(', ')}.`,
    });
  }
  const isSasl = protocol.startsWith('SASL_');
  if (isSasl !== wantsSasl) {
    throw millraceError('invalid_option', {
      message: isSasl
        ? `invalid CONNECTION: SECURITY PROTOCOL ${protocol} needs SASL MECHANISMS, SASL USERNAME and SASL PASSWORD`
        : `invalid CONNECTION: SASL options have no meaning with SECURITY PROTOCOL ${protocol}`,
    });
  }
  const factor = plain('PROGRESS TOPIC REPLICATION FACTOR');
  if (factor !== undefined && !/^0*[1-9]\d{0,4}$/.test(factor)) {
    throw millraceError('invalid_option', { message: 'invalid CONNECTION: PROGRESS TOPIC REPLICATION FACTOR must be greater than 0' });
  }
  return {
    brokers: (plain('BROKERS') ?? plain('BROKER') ?? '').split(',').map(brokerOf),
    tls: protocol.endsWith('SSL') ? { ...certificates(plain), verify: true } : null,
    sasl: isSasl ? { mechanism: mechanismOf(asked), ...saslUser(username, password) } : null,
    progressTopic: plain('PROGRESS TOPIC') ?? null,
    progressReplicationFactor: factor === undefined ? null : Number(factor),
  };
}

function mechanismOf(asked: string | undefined): SaslMechanism {
  const found = mechanisms.find((mechanism) => mechanism === asked?.toUpperCase());
  if (found !== undefined) return found;
  throw millraceError('invalid_option', {
    message: asked === undefined ? 'SASL MECHANISMS option is required' : `invalid CONNECTION: unknown SASL MECHANISMS "${asked}"`,
    hint: `The mechanisms are: ${mechanisms.join(', ')}.`,
  });
}

function saslUser(username: string | undefined, password: string | undefined): { readonly username: string; readonly password: string } {
  if (username !== undefined && password !== undefined) return { username, password };
  throw millraceError('invalid_option', {
    message: `${username === undefined ? 'SASL USERNAME' : 'SASL PASSWORD'} option is required`,
    hint: "Add SASL USERNAME '...', SASL PASSWORD SECRET ... to the list.",
  });
}

function brokerOf(written: string): string {
  const [, host, port] = /^\s*(\[[^\]]+\]|[^:\s]+)(?::(\d{1,5}))?\s*$/.exec(written) ?? [];
  const number = Number(port ?? 9092);
  if (host !== undefined && number >= 1 && number <= 65535) return `${host}:${number}`;
  throw millraceError('invalid_option', { message: `invalid BROKER: "${written.trim()}"`, hint: "Give host and port: 'kafka:9092'." });
}

/** As openAddress, for a connection TO CONFLUENT SCHEMA REGISTRY. */
export function openRegistryAddress(secretKey: string, options: ConnectionOptions, sealed: SealedSecrets): RegistryAddress {
  const plain = opener(secretKey, options, sealed);
  const given = plain('URL') ?? '';
  if (!URL.canParse(given) || !/^https?:$/.test(new URL(given).protocol)) {
    throw millraceError('invalid_option', {
      message: `invalid CONNECTION: invalid URL "${given}"`,
      hint: "Give it as 'http://host:8081'.",
    });
  }
  const url = new URL(given);
  if (url.username !== '' || url.password !== '') {
    throw millraceError('invalid_option', {
      message: 'invalid CONNECTION: URL must not contain a user or password',
      hint: "Give them as USERNAME '...', PASSWORD SECRET ....",
    });
  }
  if (url.search !== '' || url.hash !== '') {
    throw millraceError('invalid_option', { message: 'invalid CONNECTION: URL must not go on behind its path' });
  }
  const username = plain('USERNAME');
  return {
    // Registries that speak more than Confluent's interface have that under a path.
    url: url.origin + url.pathname.replace(/\/+$/, ''),
    login: username === undefined ? null : { username, password: plain('PASSWORD') ?? '' },
    tls: url.protocol === 'https:' ? { ...certificates(plain), verify: true } : null,
  };
}
