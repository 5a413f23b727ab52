/**
 * All pools and pooled clients of a worker.
 * Invariant: the limits of the settings hold (each worker has its share of them); a cancel request reaches the server that works for just
 * that client at that moment, or nothing.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { ServerAddress } from '../../config.ts';
import { type MillraceError, millraceError } from '../../errors.ts';
import type { Logger } from '../../log.ts';
import { cancelPacket } from '../encode.ts';
import { heldText } from '../held-text.ts';
import { sendCancel } from '../relayed.ts';
import type { Session } from '../session.ts';
import { SettingsTable } from './parameters.ts';
import { Pool, type PoolLimits, type PoolPort } from './pool.ts';
import type { PooledLink } from './pooled-link.ts';
import type { PoolRow } from './report.ts';
import type { ServerConnection } from './server.ts';
import { overrideOf as own, type PoolMode, type ProxySettings } from './settings.ts';

/** A client that takes turns. */
export interface PooledClient {
  readonly id: string;
  readonly link: PooledLink;
  readonly pool: Pool;
  readonly session: Session;
  /** What it was told in BackendKeyData. */
  readonly pid: number;
  readonly key: Buffer;
}

export interface PoolsPort {
  readonly upstream: ServerAddress;
  readonly log: Logger;
  /** This worker's number from 0, and how many there are: limits are shared out among them. */
  readonly worker: number;
  readonly workers: number;
}

/** Process ids that clients of pools are told begin here: beyond those of any operating system. */
export const firstPooledPid = 0x4000_0000;

export class Pools {
  settings: ProxySettings;
  readonly table = new SettingsTable();
  readonly pools = new Map<string, Pool>();
  /** By the process id they were told. */
  readonly clients = new Map<number, PooledClient>();
  /** How many server connections are not of pools but of clients in session mode. */
  ownServers: (of: 'database' | 'user', name: string) => number = () => 0;
  readonly #bySession = new WeakMap<Session, PooledClient>();
  readonly #port: PoolsPort;
  #lastPid = 0;
  readonly #timer: NodeJS.Timeout;

  constructor(settings: ProxySettings, port: PoolsPort) {
    this.settings = settings;
    this.#port = port;
    this.#timer = setInterval(() => this.#tend(), 250);
    this.#timer.unref();
  }

  /** How a client of this role is served in this database. */
  modeOf(database: string, user: string): PoolMode {
    const { settings } = this;
    return own(settings.perUser, user)?.poolMode ?? own(settings.perDatabase, database)?.poolMode ?? settings.poolMode;
  }

  /** Whether a client has a server connection that ends with it, and that authenticates it. */
  hasOwnServer(database: string, user: string): boolean {
    return this.settings.serverResetQuery === '' && this.modeOf(database, user) === 'session';
  }

  /** The pool; `fixed` are the startup parameters that only a connection of its own can have. `open` logs in with them. */
  poolFor(database: string, user: string, fixed: readonly (readonly [string, string])[], open: PoolPort['open']): Pool {
    const key = JSON.stringify([database, user, fixed]);
    const known = this.pools.get(key);
    if (known !== undefined) return known;
    const pool: Pool = new Pool({ database, user }, this.table, {
      limits: () => this.#limits(database, user),
      mayOpen: () => this.mayOpen(database, user),
      open,
      log: this.#port.log,
    });
    this.pools.set(key, pool);
    return pool;
  }

  /** A process id and a cancel key for a new client; clients of protocol 3.2 get a longer one. */
  newKey(long: boolean): { readonly pid: number; readonly key: Buffer } {
    const key = randomBytes(long ? 32 : 4);
    do this.#lastPid = (this.#lastPid + 1) % 0x0040_0000;
    while (this.clients.has(this.#pidOf(this.#lastPid)));
    return { pid: this.#pidOf(this.#lastPid), key };
  }

  /** True when the request was for a client of this worker, whatever became of it. */
  cancel(pid: number, key: Buffer): boolean {
    const client = this.clients.get(pid);
    if (client === undefined) return false;
    if (client.key.length !== key.length || !timingSafeEqual(client.key, key)) return true;
    const { server } = client.link;
    if (server === null) {
      if (client.link.waitingSince === 0) return true;
      client.pool.cancelWait(client.link);
      client.link.refuse(millraceError('query_canceled').fields);
    } else if (!server.expected.quiet) void this.#sendCancel(client.pool, server);
    return true;
  }

  /** Cancels what the server does for a client that has to go. */
  interrupt({ pool, link: { server } }: PooledClient): void {
    if (server !== null && !server.expected.quiet) void this.#sendCancel(pool, server);
  }

  /** Relations of these names have changed: what was prepared over them is prepared anew, where nobody can tell. */
  changed(database: string, names: readonly string[]): void {
    const { named } = heldText(names, false);
    for (const pool of this.of(database)) for (const server of pool.servers) server.statements.outdate(named);
  }

  /** The pools of a database, or all. */
  of(database: string | null): Pool[] {
    return [...this.pools.values()].filter((pool) => database === null || pool.database === database);
  }

  /** A new client of this role in this database is too many: why; null when it is not. `count` counts those there are. */
  crowd(database: string, user: string, count: (of: 'all' | 'database' | 'user') => number): MillraceError | null {
    const { settings } = this;
    const limits = [
      ['max_client_conn', settings.maxClientConn, 'all'],
      [
        'max_db_client_connections',
        own(settings.perDatabase, database)?.maxDbClientConnections ?? settings.maxDbClientConnections,
        'database',
      ],
      ['max_user_client_connections', own(settings.perUser, user)?.maxUserClientConnections ?? settings.maxUserClientConnections, 'user'],
    ] as const;
    for (const [limit, value, of] of limits) {
      if (value > 0 && count(of) >= this.#share(value)) return millraceError('too_many_clients', { limit, value });
    }
    return null;
  }

  client(session: Session): PooledClient | undefined {
    return this.#bySession.get(session);
  }

  add(client: PooledClient): void {
    this.clients.set(client.pid, client);
    this.#bySession.set(client.session, client);
  }

  remove(pid: number): void {
    const client = this.clients.get(pid);
    if (client === undefined) return;
    this.clients.delete(pid);
  }

  rows(isPaused: (database: string) => boolean): readonly PoolRow[] {
    const rows = new Map<string, { -readonly [K in keyof PoolRow]: PoolRow[K] }>();
    const now = performance.now();
    for (const pool of this.pools.values()) {
      const { database, user } = pool;
      const key = JSON.stringify([database, user]);
      const none = { clActive: 0, clWaiting: 0, clActiveCancelReq: 0, svActive: 0, svIdle: 0, svUsed: 0, svLogin: 0, maxwaitUs: 0 };
      const row = rows.get(key) ?? { database, user, poolMode: this.modeOf(database, user), ...none, paused: isPaused(database) };
      rows.set(key, row);
      row.clWaiting += pool.waiting.size;
      row.svActive += pool.lent;
      row.svIdle += pool.idle.length;
      row.svUsed += pool.used.size;
      row.svLogin += pool.opening;
      row.maxwaitUs = Math.max(row.maxwaitUs, Math.round(1000 * pool.longestWait(now)));
      for (const server of pool.servers) row.clActiveCancelReq += server.cancels;
    }
    for (const { pool, link } of this.clients.values()) {
      const row = rows.get(JSON.stringify([pool.database, pool.user]));
      if (row !== undefined && link.waitingSince === 0) row.clActive++;
    }
    return [...rows.values()];
  }

  stop(): void {
    clearInterval(this.#timer);
    for (const pool of this.pools.values()) {
      pool.paused = true;
      pool.kill();
    }
  }

  #pidOf(number: number): number {
    return firstPooledPid + (this.#port.worker % 128) * 0x0040_0000 + number;
  }

  async #sendCancel(pool: Pool, server: ServerConnection): Promise<void> {
    server.cancels++;
    // The server has passed the request on before it hangs up; until then nobody else may have the connection.
    const packet = cancelPacket(server.pid, server.key);
    await sendCancel(packet, this.#port.upstream, this.settings.cancelWaitTimeout, this.#port.log);
    pool.cancelled(server);
  }

  #limits(database: string, user: string): PoolLimits {
    const { settings } = this;
    const ofDatabase = own(settings.perDatabase, database);
    const ofUser = own(settings.perUser, user);
    return {
      size: this.#share(ofUser?.poolSize ?? ofDatabase?.poolSize ?? settings.defaultPoolSize),
      minSize: Math.floor((ofDatabase?.minPoolSize ?? settings.minPoolSize) / this.#port.workers),
      reserve: Math.ceil((ofUser?.reservePoolSize ?? ofDatabase?.reservePoolSize ?? settings.reservePoolSize) / this.#port.workers),
      reserveTimeout: settings.reservePoolTimeout,
      queryWaitTimeout: settings.queryWaitTimeout,
      serverIdleTimeout: settings.serverIdleTimeout,
      serverLifetime: settings.serverLifetime,
      serverLoginRetry: settings.serverLoginRetry,
      maxPreparedStatements: settings.maxPreparedStatements,
      statementMode: this.modeOf(database, user) === 'statement',
    };
  }

  /** This worker's part of a limit that holds for all: at least one. */
  #share(limit: number): number {
    const { worker, workers } = this.#port;
    return Math.max(1, Math.floor(limit / workers) + (worker < limit % workers ? 1 : 0));
  }

  /** Whether one more server connection is allowed to this database and role. If not, one that nobody needs is closed. */
  mayOpen(database: string, user: string): boolean {
    const { settings } = this;
    const perDatabase = own(settings.perDatabase, database)?.maxDbConnections ?? settings.maxDbConnections;
    const perUser = own(settings.perUser, user)?.maxUserConnections ?? settings.maxUserConnections;
    if (perDatabase === 0 && perUser === 0) return true;
    let ofDatabase = this.ownServers('database', database);
    let ofUser = this.ownServers('user', user);
    for (const pool of this.pools.values()) {
      if (pool.database === database) ofDatabase += pool.size;
      if (pool.user === user) ofUser += pool.size;
    }
    if (perDatabase > 0 && ofDatabase >= this.#share(perDatabase)) return this.#makeRoom((pool) => pool.database === database);
    if (perUser > 0 && ofUser >= this.#share(perUser)) return this.#makeRoom((pool) => pool.user === user);
    return true;
  }

  /** Closes the connection that was idle longest, of another pool that nobody waits for. */
  #makeRoom(shares: (pool: Pool) => boolean): boolean {
    let oldest: ServerConnection | undefined;
    for (const pool of this.pools.values()) {
      const [server] = shares(pool) && pool.waiting.size === 0 ? pool.idle : [];
      if (server !== undefined && (oldest === undefined || server.usedAt < oldest.usedAt)) oldest = server;
    }
    // Its place is free once it is closed: for whoever has waited longest.
    oldest?.socket.once('close', () => {
      const now = performance.now();
      const byWait = [...this.pools.values()].sort((one, other) => other.longestWait(now) - one.longestWait(now));
      for (const pool of byWait) pool.openMore();
    });
    oldest?.destroy();
    return false;
  }

  #tend(): void {
    for (const [key, pool] of this.pools) {
      pool.tend();
      if (pool.size === 0 && pool.waiting.size === 0 && ![...this.clients.values()].some((client) => client.pool === pool))
        this.pools.delete(key);
    }
  }
}
