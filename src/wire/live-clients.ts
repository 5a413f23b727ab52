/**
 * The client connections of a worker, as the admin console and /metrics show them.
 * Invariant: nothing here runs while bytes are forwarded; what is shown is read from sockets and ledgers when it is asked for.
 */
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { Pools } from './pool/pools.ts';
import type { ClientRow, DatabaseStats, PoolRow, ServerRow, WorkerReport } from './pool/report.ts';
import type { ServerConnection } from './pool/server.ts';
import type { Session, SessionIdentity } from './session.ts';
import type { Observation } from './timeouts.ts';

export interface LiveClient {
  readonly id: string;
  readonly identity: SessionIdentity;
  readonly session: Session;
  readonly connectTime: number;
  /** Grows with each RECONNECT: what was connected before is to be replaced. */
  readonly generation: number;
  requestTime: number;
  bytesRead: number;
}

/** A client that waits for a paused database. */
export interface WaitingClient {
  readonly id: string;
  readonly identity: SessionIdentity;
  readonly socket: Socket;
  readonly since: number;
  release(): void;
  refuse(): void;
}

type Totals = { -readonly [K in keyof DatabaseStats]: DatabaseStats[K] };

export class LiveClients {
  readonly clients = new Map<string, LiveClient>();
  readonly waiting = new Map<string, WaitingClient>();
  readonly #bySession = new Map<Session, LiveClient>();
  /** Of clients that have left. */
  readonly #past = new Map<string, Totals>();
  #lastNumber = 0;
  generation = 0;
  readonly #pools: Pools;

  constructor(pools: Pools) {
    this.#pools = pools;
  }

  /** Unique among all workers of all times, nearly. */
  newId(): string {
    return `c${process.pid}_${++this.#lastNumber}`;
  }

  opened(session: Session, identity: SessionIdentity): LiveClient {
    const now = Date.now();
    const id = this.newId();
    const client = { id, identity, session, connectTime: now, generation: this.generation, requestTime: now, bytesRead: 0 };
    this.clients.set(id, client);
    this.#bySession.set(session, client);
    return client;
  }

  closed(session: Session): void {
    const client = this.#bySession.get(session);
    if (client === undefined) return;
    this.#bySession.delete(session);
    this.clients.delete(client.id);
    // Names nobody was let in under are not kept: anybody could make any number of them.
    if (session.facts().authenticated) addUp(totalsOf(this.#past, client.identity.database), client);
  }

  /** Called about every second: the time of the last request is known to that precision. */
  tick(): void {
    const now = Date.now();
    for (const client of this.clients.values()) {
      const { bytesRead } = client.session.facts().client;
      if (bytesRead !== client.bytesRead) client.requestTime = now;
      client.bytesRead = bytesRead;
    }
  }

  stats(): readonly DatabaseStats[] {
    const totals = new Map([...this.#past].map(([database, past]) => [database, { ...past }]));
    for (const client of this.clients.values()) {
      if (client.session.facts().authenticated) addUp(totalsOf(totals, client.identity.database), client);
    }
    for (const { database, stats } of this.#pools.pools.values()) {
      // The waits and transactions of pools are measured.
      const total = totalsOf(totals, database);
      total.totalXactTime += Math.round(1000 * stats.xactMs);
      total.totalWaitTime += Math.round(1000 * stats.waitMs);
      total.totalServerAssignmentCount += stats.assignments;
    }
    return [...totals.values()];
  }

  /** What the timeouts see of a client; null while they do not concern it. */
  observe({ session, identity }: LiveClient): Observation | null {
    const { authenticated, client, ledger, busy, transactions } = session.facts();
    if (!authenticated || identity.replication) return null;
    const common = { transactions, answered: ledger.answered, received: client.bytesRead };
    const waits = session.resting || (this.#pools.client(session)?.link.waitingSince ?? 0) !== 0;
    if (waits) return { state: 'waiting', ...common };
    return { state: !busy ? 'idle' : session.isAsked ? 'active' : 'idle in transaction', ...common };
  }

  pools(isPaused: (database: string) => boolean): readonly PoolRow[] {
    const pools = new Map<string, { -readonly [K in keyof PoolRow]: PoolRow[K] }>();
    const pool = ({ database, user }: SessionIdentity): { -readonly [K in keyof PoolRow]: PoolRow[K] } => {
      const key = `${database}\0${user}`;
      const found = pools.get(key) ?? newPool(database, user, isPaused(database));
      pools.set(key, found);
      return found;
    };
    for (const { session, identity } of this.clients.values()) {
      if (this.#pools.client(session) !== undefined) continue;
      const row = pool(identity);
      if (session.facts().authenticated) {
        row.clActive++;
        row.svActive++;
      } else row.svLogin++;
    }
    const now = Date.now();
    for (const { identity, since } of this.waiting.values()) {
      const row = pool(identity);
      row.clWaiting++;
      row.maxwaitUs = Math.max(row.maxwaitUs, (now - since) * 1000);
    }
    return [...pools.values(), ...this.#pools.rows(isPaused)];
  }

  report(isPaused: (database: string) => boolean): WorkerReport {
    this.tick();
    const now = Date.now();
    const rows = [...this.clients.values()];
    const waiting = [...this.waiting.values()].map((client) => waitingRow(client, now));
    return {
      pools: this.pools(isPaused),
      clients: [...rows.map((client) => this.#clientRow(client)), ...waiting],
      servers: [...rows.filter(({ session }) => this.#pools.client(session) === undefined).map(serverRow), ...this.#pooledServers()],
      stats: this.stats(),
    };
  }

  #clientRow(client: LiveClient): ClientRow {
    const facts = client.session.facts();
    const pooled = this.#pools.client(client.session);
    const waiting = pooled?.link.waitingSince ?? 0;
    const server = pooled?.link.server ?? null;
    return {
      id: client.id,
      user: client.identity.user,
      database: client.identity.database,
      state: !facts.authenticated ? 'login' : waiting !== 0 ? 'waiting' : facts.busy ? 'active' : 'idle',
      ...addresses(facts.client),
      connectTime: client.connectTime,
      requestTime: client.requestTime,
      waitUs: waiting === 0 ? 0 : Math.round(1000 * (performance.now() - waiting)),
      link: pooled === undefined ? serverId(client) : server === null ? '' : pooledId(server),
      tls: tlsOf(facts.client),
      applicationName: facts.applicationName,
      preparedStatements: pooled?.link.statements.named.size ?? 0,
      pinned: pooled?.link.pinned ?? '',
    };
  }

  #pooledServers(): readonly ServerRow[] {
    const borrowers = new Map<unknown, string>();
    for (const { id, session } of this.clients.values()) borrowers.set(this.#pools.client(session)?.link.server, id);
    return [...this.#pools.pools.values()].flatMap((pool) =>
      [...pool.servers].map((server) => ({
        id: pooledId(server),
        user: pool.user,
        database: pool.database,
        state: pool.used.has(server) ? 'used' : server.borrower === null ? 'idle' : 'active',
        ...addresses(server.socket),
        connectTime: server.connectTime,
        requestTime: server.usedAt,
        link: borrowers.get(server) ?? '',
        remotePid: server.pid,
        tls: tlsOf(server.socket),
        preparedStatements: server.statements.size,
      })),
    );
  }
}

function newPool(database: string, user: string, paused: boolean): { -readonly [K in keyof PoolRow]: PoolRow[K] } {
  const none = { clActive: 0, clWaiting: 0, clActiveCancelReq: 0, svActive: 0, svIdle: 0, svUsed: 0, svLogin: 0, maxwaitUs: 0 };
  return { database, user, poolMode: 'session', ...none, paused };
}

function totalsOf(all: Map<string, Totals>, database: string): Totals {
  const none = { totalServerAssignmentCount: 0, totalXactCount: 0, totalQueryCount: 0, totalReceived: 0, totalSent: 0 };
  const found = all.get(database) ?? { database, ...none, totalXactTime: 0, totalQueryTime: 0, totalWaitTime: 0 };
  all.set(database, found);
  return found;
}

/** Times of transactions are not measured here: a clock read a message is dearer than forwarding it. */
function addUp(totals: Totals, { session }: LiveClient): void {
  const { client, ledger } = session.facts();
  totals.totalServerAssignmentCount++;
  totals.totalXactCount += ledger.transactions;
  totals.totalQueryCount += ledger.answered;
  totals.totalReceived += client.bytesRead;
  totals.totalSent += client.bytesWritten;
}

const pooledId = (server: ServerConnection): string => `p${process.pid}_${server.id}`;
const serverId = (client: LiveClient): string => client.id.replace('c', 's');

function serverRow(client: LiveClient): ServerRow {
  const facts = client.session.facts();
  return {
    id: serverId(client),
    user: client.identity.user,
    database: client.identity.database,
    state: facts.authenticated ? 'active' : 'login',
    ...(facts.upstream === null ? nowhere : addresses(facts.upstream)),
    connectTime: client.connectTime,
    requestTime: client.requestTime,
    link: client.id,
    remotePid: facts.backendPid,
    tls: facts.upstream === null ? '' : tlsOf(facts.upstream),
    preparedStatements: 0,
  };
}

function waitingRow({ id, identity, socket, since }: WaitingClient, now: number): ClientRow {
  return {
    id,
    user: identity.user,
    database: identity.database,
    state: 'waiting',
    ...addresses(socket),
    connectTime: since,
    requestTime: since,
    waitUs: (now - since) * 1000,
    link: '',
    tls: tlsOf(socket),
    applicationName: '',
    preparedStatements: 0,
    pinned: '',
  };
}

const nowhere = { address: '', port: 0, localAddress: '', localPort: 0 };

/** Of the peer and of this end; a Unix socket is 'unix'. */
export function addresses(socket: Socket): Pick<ClientRow, 'address' | 'port' | 'localAddress' | 'localPort'> {
  return {
    address: socket.remoteAddress ?? 'unix',
    port: socket.remotePort ?? 0,
    localAddress: socket.localAddress ?? 'unix',
    localPort: socket.localPort ?? 0,
  };
}

/** `TLSv1.3/TLS_AES_256_GCM_SHA384`, or '' without TLS. */
export function tlsOf(socket: Socket): string {
  return socket instanceof TLSSocket ? `${socket.getProtocol() ?? ''}/${socket.getCipher()?.standardName ?? ''}` : '';
}
