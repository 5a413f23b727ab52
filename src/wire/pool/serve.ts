/**
 * Clients of pools, from the startup packet to their first ReadyForQuery.
 * Invariant: a client that reaches a server connection has proved who it is, and the connection was opened in its name; what it set in its
 * startup packet holds for all its statements.
 */
import type { ServerAddress } from '../../config.ts';
import { type ErrorFields, MillraceError, millraceError } from '../../errors.ts';
import type { Arrival } from '../accept.ts';
import { authenticationOk, type ClientAuthenticator } from '../auth/client-authentication.ts';
import type { ServerCredentials } from '../auth/credentials.ts';
import { LoginRefused, logIn } from '../auth/server-login.ts';
import { backendKeyData, message, parameterStatus, readyForQuery } from '../encode.ts';
import { startupParameters } from '../startup.ts';
import { Reply, Status } from '../tags.ts';
import { connectUpstream } from '../upstream.ts';
import { type Settings, settingStatements, spelling } from './parameters.ts';
import { NoServer, type Pool } from './pool.ts';
import { PooledLink } from './pooled-link.ts';
import type { Pools } from './pools.ts';
import type { LoggedIn } from './server.ts';

const latestProtocol = 0x30002;

/** Authenticates the client and gives it a session that takes turns, or turns it away. */
export async function servePooled(
  arrival: Arrival,
  pools: Pools,
  authenticator: ClientAuthenticator,
  upstream: ServerAddress,
): Promise<void> {
  const { user, database } = arrival.identity;
  const { protocol, parameters } = startupParameters(arrival.packet);
  if (protocol >> 16 !== 3) return arrival.refuse(unsupportedProtocol(protocol));
  const unknown = parameters.filter(([name]) => name.startsWith('_pq_.')).map(([name]) => name);
  const agreed = Math.min(protocol, latestProtocol);
  const peer = { socket: arrival.socket, reader: null };
  if (agreed !== protocol || unknown.length > 0) arrival.socket.write(negotiateProtocolVersion(agreed, unknown));
  const known = await authenticator.authenticate(peer, user, pools.settings.authType, arrival.rest);
  if (known === null) return;
  arrival.authenticated();
  const { tracked, fixed } = sortParameters(parameters);
  const pool = pools.poolFor(database, user, fixed, (credentials) =>
    openServer(upstream, { user, database, ...Object.fromEntries(fixed) }, credentials, pools.settings.serverConnectTimeout),
  );
  // What trust and certificates give is less than what another client's password may have given.
  if (known.credentials.kind !== 'none') pool.credentials = known.credentials;
  let settings: Settings;
  try {
    settings = await startSettings(pools, pool, tracked);
  } catch (error) {
    if (!(error instanceof NoServer)) throw error;
    return arrival.refuse(error);
  }
  if (arrival.isGone()) return;
  const { pid, key } = pools.newKey(agreed >= latestProtocol);
  const turn = pools.modeOf(database, user) === 'session' ? 'session' : 'transaction';
  const link = new PooledLink(pool, settings, turn, () => pools.remove(pid));
  const session = arrival.handOver(link, arrival.identity);
  pools.add({ id: String(pid), link, pool, pid, key, session });
  const reported = new Map([...(pool.parameters ?? []), ...settings.values]);
  session.startAuthenticated(
    [
      authenticationOk,
      ...[...reported].map(([name, value]) => parameterStatus(name, value)),
      backendKeyData(pid, key),
      readyForQuery(Status.idle),
    ],
    known.rest,
  );
}

/** Those that are set on every server connection the client gets, and those that only a connection of its own kind can have. */
function sortParameters(parameters: readonly (readonly [string, string])[]): {
  readonly tracked: readonly (readonly [string, string])[];
  readonly fixed: readonly (readonly [string, string])[];
} {
  const tracked: (readonly [string, string])[] = [];
  const fixed: (readonly [string, string])[] = [];
  for (const [name, value] of parameters) {
    if (name === 'user' || name === 'database' || name === 'replication' || name.startsWith('_pq_.')) continue;
    const spelled = spelling(name);
    // Not every server reports search_path.
    if (spelled === undefined || spelled === 'search_path') fixed.push([name, value]);
    else tracked.push([spelled, value]);
  }
  fixed.sort(([a], [b]) => (a < b ? -1 : 1));
  return { tracked, fixed };
}

/** The settings the client starts with, as the server spells them. Rejects with NoServer. */
async function startSettings(pools: Pools, pool: Pool, tracked: readonly (readonly [string, string])[]): Promise<Settings> {
  if (pool.parameters === null) pool.release(await pool.checkOut(), false);
  const base = pools.table.of(pool.parameters ?? new Map());
  let settings = base;
  for (const [name, value] of tracked) {
    const spelled = pool.spelled.get(`${name}=${value}`);
    settings = pools.table.with(settings, name, spelled ?? value);
  }
  const unsure = tracked.filter(([name, value]) => name !== 'application_name' && !pool.spelled.has(`${name}=${value}`));
  if (settings === base || unsure.every(([name, value]) => base.values.get(name) === value)) return settings;
  const server = await pool.checkOut();
  const error = await server.run(settingStatements(server.settings, settings));
  const result = server.settings;
  pool.release(server, false);
  if (error !== null) throw new NoServer({ ...error, severity: 'FATAL' });
  for (const [name, value] of unsure) pool.spelled.set(`${name}=${value}`, result.values.get(name) ?? value);
  return result;
}

async function openServer(
  upstream: ServerAddress,
  parameters: Readonly<Record<string, string>>,
  credentials: ServerCredentials,
  patience: number,
): Promise<LoggedIn> {
  const peer = await connectUpstream(upstream);
  const timer = patience > 0 ? setTimeout(() => peer.socket.destroy(), patience) : undefined;
  try {
    const { parameters: reported, pid, key } = await logIn(peer, { parameters }, credentials);
    return { peer, parameters: reported, pid, key };
  } catch (error) {
    if (error instanceof LoginRefused) throw new NoServer(refusal(error.fields));
    // What the upstream asks for is not known here: trying again would not help.
    if (error instanceof MillraceError) throw new NoServer({ ...error.fields, severity: 'FATAL' });
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

function refusal(fields: Readonly<Record<string, string>>): ErrorFields {
  return {
    severity: 'FATAL',
    code: fields['C'] ?? '08006',
    message: fields['M'] ?? 'the upstream refused the login',
    ...(fields['D'] === undefined ? {} : { detail: fields['D'] }),
    ...(fields['H'] === undefined ? {} : { hint: fields['H'] }),
  };
}

function unsupportedProtocol(protocol: number): ReturnType<typeof millraceError> {
  return millraceError('feature_not_supported', {
    message: `unsupported frontend protocol ${protocol >> 16}.${protocol & 0xffff}: server supports 3.0 to 3.2`,
  });
}

function negotiateProtocolVersion(version: number, unknown: readonly string[]): Buffer {
  const head = Buffer.alloc(8);
  head.writeInt32BE(version, 0);
  head.writeInt32BE(unknown.length, 4);
  return message(Reply.negotiateProtocolVersion, [head, ...unknown.map((name) => Buffer.from(`${name}\0`, 'utf8'))]);
}
