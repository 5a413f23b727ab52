/**
 * The first packets of a connection, which have no tag.
 * Invariant: nothing a client that is not authenticated can send makes the proxy buffer more than `longestStartup` bytes.
 */

/** As in Postgres (MAX_STARTUP_PACKET_LENGTH). */
export const longestStartup = 10_000;
/** As in Postgres (PG_MAX_AUTH_TOKEN_LENGTH). */
export const longestAuthenticationMessage = 65_535;

const cancelRequest = 80877102;
const sslRequest = 80877103;
const gssEncRequest = 80877104;

export type StartupPacket =
  /** More bytes are needed. */
  | { readonly kind: 'incomplete' }
  | { readonly kind: 'invalid'; readonly message: string }
  /** TLS without SSLRequest: the first byte of a ClientHello. */
  | { readonly kind: 'direct-tls' }
  | { readonly kind: 'ssl'; readonly length: number }
  | { readonly kind: 'gss'; readonly length: number }
  | { readonly kind: 'cancel'; readonly length: number }
  | {
      readonly kind: 'startup';
      readonly length: number;
      readonly user: string;
      readonly database: string;
      readonly replication: boolean;
    };

/** What `bytes`, the beginning of a connection or what follows a refused SSLRequest, is. */
export function readStartupPacket(bytes: Buffer): StartupPacket {
  if (bytes.length === 0) return { kind: 'incomplete' };
  if (bytes[0] === 0x16) return { kind: 'direct-tls' };
  if (bytes.length < 4) return { kind: 'incomplete' };
  const length = bytes.readUInt32BE(0);
  if (length < 8 || length > longestStartup) return { kind: 'invalid', message: 'invalid length of startup packet' };
  if (bytes.length < length) return { kind: 'incomplete' };
  switch (bytes.readUInt32BE(4)) {
    case cancelRequest:
      return { kind: 'cancel', length };
    case sslRequest:
      return { kind: 'ssl', length };
    case gssEncRequest:
      return { kind: 'gss', length };
    default:
      return startupMessage(bytes.subarray(0, length));
  }
}

function startupMessage(packet: Buffer): StartupPacket {
  const strings = packet.toString('utf8', 8).split('\0');
  let user = '';
  let database = '';
  let replication = false;
  for (let i = 0; i + 1 < strings.length && strings[i] !== ''; i += 2) {
    const value = strings[i + 1] ?? '';
    if (strings[i] === 'user') user = value;
    else if (strings[i] === 'database') database = value;
    else if (strings[i] === 'replication') replication = !/^(f|fa|fal|fals|false|n|no|of|off|0)$/i.test(value);
  }
  return { kind: 'startup', length: packet.length, user, database: database || user, replication };
}

/** All parameters of a startup message, in the order sent, and the protocol version asked for. */
export function startupParameters(packet: Buffer): {
  readonly protocol: number;
  readonly parameters: readonly (readonly [string, string])[];
} {
  const strings = packet.toString('utf8', 8).split('\0');
  const parameters: [string, string][] = [];
  for (let i = 0; i + 1 < strings.length && strings[i] !== ''; i += 2) parameters.push([strings[i] ?? '', strings[i + 1] ?? '']);
  return { protocol: packet.readUInt32BE(4), parameters };
}
