/**
 * All pools and pooled clients of a worker.
 * Invariant: the limits of the settings hold (each worker has its share of them); a cancel request reaches the server that works for just
 * that client at that moment, or nothing.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { ServerAddress } from '../../config.ts';
import { millraceError } from '../../errors.ts';
import type { Logger } from '../../log.ts';
import { cancelPacket } from '../encode.ts';
import { sendCancel } from '../relayed.ts';
import type { Session } from '../session.ts';
import { SettingsTable } from './parameters.ts';
import { Pool, type PoolLimits, type PoolPort } from './pool.ts';
import type { PooledLink } from './pooled-link.ts';
import type { ServerConnection } from './server.ts';
import type { PoolMode, ProxySettings } from './settings.ts';

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
  readonly #port: PoolsPort;
  readonly #disabled = new Set<string>();
  readonly #paused = new Set<string>();
  #allPaused = false;
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
    return settings.perUser[user]?.poolMode ?? settings.perDatabase[database]?.poolMode ?? settings.poolMode;
  }

  /** The pool; `fixed` are the startup parameters that only a connection of its own can have. `open` logs in with them. */
  poolFor(database: string, user: string, fixed: readonly (readonly [string, string])[], open: PoolPort['open']): Pool {
    const key = JSON.stringify([database, user, fixed]);
    const known = this.pools.get(key);
    if (known !== undefined) return known;
    const pool: Pool = new Pool({ database, user }, this.table, {
      limits: () => this.#limits(database, user),
      mayOpen: () => this.#mayOpen(database, user),
      open,
      log: this.#port.log,
    });
    pool.paused = this.#allPaused || this.#paused.has(database);
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
      client.link.refuse(millraceError('query_cancelled').fields);
    } else if (!server.expected.quiet) void this.#sendCancel(client.pool, server);
    return true;
  }

  /** Whether clients may use the database now. */
  isDisabled(database: string): boolean {
    return this.#disabled.has(database);
  }

  setDisabled(database: string, disabled: boolean): void {
    if (disabled) this.#disabled.add(database);
    else this.#disabled.delete(database);
  }

  /** Pauses or resumes a database, or all. */
  setPaused(database: string | null, paused: boolean): void {
    if (database === null) this.#allPaused = paused;
    else if (paused) this.#paused.add(database);
    else this.#paused.delete(database);
    if (database === null && !paused) this.#paused.clear();
    for (const pool of this.of(database)) {
      if (paused) pool.paused = true;
      else pool.resume();
    }
  }

  /** The pools of a database, or all. */
  of(database: string | null): Pool[] {
    return [...this.pools.values()].filter((pool) => database === null || pool.database === database);
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
    const ofDatabase = settings.perDatabase[database];
    const ofUser = settings.perUser[user];
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

  #mayOpen(database: string, user: string): boolean {
    const { settings } = this;
    const perDatabase = settings.perDatabase[database]?.maxDbConnections ?? settings.maxDbConnections;
    const perUser = settings.perUser[user]?.maxUserConnections ?? settings.maxUserConnections;
    if (perDatabase === 0 && perUser === 0) return true;
    let ofDatabase = 0;
    let ofUser = 0;
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
    // Its place is free once it is closed; then the pools are asked again.
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
