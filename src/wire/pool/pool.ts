/**
 * The server connections of one role to one database (with the same fixed startup parameters), and who waits for one.
 * Invariant: never more connections than the limits allow; clients are served in the order they came; a connection is in exactly one of
 * idle, lent, resetting or being opened.
 */
import { type ErrorFields, millraceError } from '../../errors.ts';
import type { Logger } from '../../log.ts';
import type { ServerCredentials } from '../auth/credentials.ts';
import type { SettingsTable } from './parameters.ts';
import type { Lender, Waiter } from './pooled-link.ts';
import { type LoggedIn, ServerConnection } from './server.ts';

/** The limits that hold for a pool now; they may change while it runs. Times in ms, 0 for none. */
export interface PoolLimits {
  readonly size: number;
  readonly minSize: number;
  readonly reserve: number;
  readonly reserveTimeout: number;
  readonly queryWaitTimeout: number;
  readonly serverIdleTimeout: number;
  readonly serverLifetime: number;
  readonly serverLoginRetry: number;
  readonly maxPreparedStatements: number;
  readonly statementMode: boolean;
}

export interface PoolPort {
  limits(): PoolLimits;
  /** Whether the limits shared with other pools allow one more connection. */
  mayOpen(): boolean;
  /** Opens a connection and logs in. Rejects with NoServer when the server says no, else with what the network said. */
  open(credentials: ServerCredentials): Promise<LoggedIn>;
  readonly log: Logger;
}

/** There is no server connection to be had, and why. */
export class NoServer extends Error {
  readonly fields: ErrorFields;
  constructor(fields: ErrorFields) {
    super(fields.message);
    this.name = 'NoServer';
    this.fields = fields;
  }
}

const firstRetry = 100;
const slowestRetry = 1_000;
/** SQLSTATEs of a login that are worth another try: too many connections, starting up, shutting down, not yet accepting. */
const passing = new Set(['53300', '57P03', '57P01', '57P02']);

export class Pool implements Lender {
  readonly database: string;
  readonly user: string;
  readonly stats = { xacts: 0, queries: 0, xactMs: 0, waitMs: 0, assignments: 0 };
  readonly servers = new Set<ServerConnection>();
  /** Everything the server reported at its last login; null before the first. */
  parameters: ReadonlyMap<string, string> | null = null;
  /** `name=value` of startup packets -> how the server spells the value. */
  readonly spelled = new Map<string, string>();
  paused = false;
  opening = 0;
  /** Of the client that authenticated last. */
  credentials: ServerCredentials = { kind: 'none' };
  readonly #idle: ServerConnection[] = [];
  readonly #waiting = new Set<Waiter>();
  readonly #resetting = new Set<ServerConnection>();
  readonly #port: PoolPort;
  readonly #table: SettingsTable;
  #retryAt = 0;
  #retryDelay = firstRetry;
  #failingSince = 0;
  #lastFailure: ErrorFields | null = null;

  constructor(identity: { readonly database: string; readonly user: string }, table: SettingsTable, port: PoolPort) {
    this.database = identity.database;
    this.user = identity.user;
    this.#table = table;
    this.#port = port;
  }

  get maxPreparedStatements(): number {
    return this.#port.limits().maxPreparedStatements;
  }

  get statementMode(): boolean {
    return this.#port.limits().statementMode;
  }

  get idle(): readonly ServerConnection[] {
    return this.#idle;
  }

  get waiting(): ReadonlySet<Waiter> {
    return this.#waiting;
  }

  /** Connections being reset or checked. */
  get used(): ReadonlySet<ServerConnection> {
    return this.#resetting;
  }

  /** Open and opening ones. */
  get size(): number {
    return this.servers.size + this.opening;
  }

  get lent(): number {
    return this.servers.size - this.#idle.length - this.#resetting.size;
  }

  acquire(link: Waiter): void {
    if (this.#waiting.size === 0 && !this.paused) {
      const server = this.#takeIdle();
      if (server !== undefined) {
        link.attach(server);
        return;
      }
    }
    this.#waiting.add(link);
    this.openMore();
  }

  /** A connection for a purpose of Millrace's own, to be given back with `release`. Rejects with NoServer when there is none. */
  checkOut(): Promise<ServerConnection> {
    return new Promise((resolve, reject) => {
      this.acquire({
        waitingSince: performance.now(),
        attach: resolve,
        refuse: (fields) => reject(new NoServer(fields)),
      });
    });
  }

  cancelWait(link: Waiter): void {
    this.#waiting.delete(link);
  }

  release(server: ServerConnection, dirty: boolean): void {
    if (!server.isClean) {
      server.destroy();
      return;
    }
    if (dirty) void this.#reset(server);
    else this.#give(server);
  }

  /** Opens connections for those who wait, as far as the limits go. */
  openMore(): void {
    const limits = this.#port.limits();
    const now = performance.now();
    if (this.paused || now < this.#retryAt) return;
    const longest = this.longestWait(now);
    const most = limits.size + (limits.reserve > 0 && longest > limits.reserveTimeout ? limits.reserve : 0);
    const wanted = Math.max(this.#waiting.size, limits.minSize - this.size + this.opening);
    while (this.opening < wanted && this.size < most && this.#port.mayOpen()) void this.#open();
  }

  /** How long the first in the queue has waited, in ms. */
  longestWait(now: number): number {
    const [first] = this.#waiting;
    return first === undefined ? 0 : now - first.waitingSince;
  }

  /** Periodic work: waits that take too long, connections that are idle or old. */
  tend(): void {
    const limits = this.#port.limits();
    const now = performance.now();
    for (const link of [...this.#waiting]) {
      if (limits.queryWaitTimeout === 0 || now - link.waitingSince < limits.queryWaitTimeout) break;
      this.#waiting.delete(link);
      link.refuse(millraceError('query_wait_timeout', { seconds: limits.queryWaitTimeout / 1_000 }).fields);
    }
    const clock = Date.now();
    for (const server of [...this.#idle]) {
      const old = limits.serverLifetime > 0 && clock - server.connectTime > limits.serverLifetime;
      const spare = this.size > limits.minSize && limits.serverIdleTimeout > 0 && clock - server.usedAt > limits.serverIdleTimeout;
      if (old || spare || this.size > limits.size + limits.reserve) server.destroy();
    }
    for (const server of this.servers) {
      if (limits.serverLifetime > 0 && clock - server.connectTime > limits.serverLifetime) server.retired ??= 'server_lifetime';
    }
    this.openMore();
  }

  /** Replaces connections by new ones as soon as they are free. */
  reconnect(): void {
    for (const server of this.servers) server.retired ??= 'RECONNECT';
    for (const server of [...this.#idle]) server.destroy();
  }

  /** Lets those who wait go on after a pause. */
  resume(): void {
    this.paused = false;
    while (this.#waiting.size > 0) {
      const server = this.#takeIdle();
      if (server === undefined) break;
      this.#give(server);
    }
    this.openMore();
  }

  /** Closes all connections, also those in use. */
  kill(): void {
    for (const server of [...this.servers]) server.destroy();
  }

  /** Tells everyone who waits that there is nothing to wait for. */
  refuseAll(error: ErrorFields): void {
    for (const link of [...this.#waiting]) {
      this.#waiting.delete(link);
      link.refuse(error);
    }
  }

  #takeIdle(): ServerConnection | undefined {
    for (let server = this.#idle.pop(); server !== undefined; server = this.#idle.pop()) {
      if (server.isClean) return server;
      server.destroy();
    }
    return undefined;
  }

  #give(server: ServerConnection): void {
    if (!server.isClean) {
      server.destroy();
      return;
    }
    const [next] = this.#waiting;
    if (next === undefined || this.paused || server.cancels > 0) {
      // One that a cancel request is on its way to stays out of use until that has arrived.
      if (server.cancels > 0) this.#resetting.add(server);
      else this.#idle.push(server);
      return;
    }
    this.#waiting.delete(next);
    next.attach(server);
  }

  /** A cancel request for the server was answered. */
  cancelled(server: ServerConnection): void {
    server.cancels--;
    if (server.cancels > 0 || !this.#resetting.delete(server)) return;
    this.#give(server);
  }

  async #reset(server: ServerConnection): Promise<void> {
    this.#resetting.add(server);
    const error = await server.run('DISCARD ALL');
    if (server.cancels > 0 && error === null) return;
    this.#resetting.delete(server);
    if (error === null) this.#give(server);
    else server.destroy();
  }

  async #open(): Promise<void> {
    this.opening++;
    try {
      const login = await this.#port.open(this.credentials);
      this.opening--;
      this.#retryDelay = firstRetry;
      this.#failingSince = 0;
      this.#lastFailure = null;
      this.parameters = login.parameters;
      const server: ServerConnection = new ServerConnection(login, this.#table, () => this.#closed(server));
      this.servers.add(server);
      this.#give(server);
    } catch (error) {
      this.opening--;
      this.#failed(error);
    }
  }

  #closed(server: ServerConnection): void {
    this.servers.delete(server);
    this.#resetting.delete(server);
    const at = this.#idle.indexOf(server);
    if (at !== -1) this.#idle.splice(at, 1);
    this.openMore();
  }

  #failed(error: unknown): void {
    const now = performance.now();
    const refused = error instanceof NoServer ? error.fields : null;
    const fields =
      refused ?? millraceError('upstream_unreachable', { cause: error instanceof Error ? error.message : String(error) }).fields;
    if (this.#failingSince === 0) {
      this.#failingSince = now;
      this.#port.log.warn(
        { database: this.database, user: this.user, code: fields.code, cause: fields.detail ?? fields.message },
        'no server connection',
      );
    }
    this.#lastFailure = fields;
    if (refused !== null && !passing.has(refused.code)) {
      this.#failingSince = 0;
      this.refuseAll(refused);
      return;
    }
    // Others may still be served by the connections there are.
    if (now - this.#failingSince >= this.#port.limits().serverLoginRetry && this.servers.size === 0) this.refuseAll(fields);
    this.#retryAt = now + this.#retryDelay;
    setTimeout(() => this.openMore(), this.#retryDelay + 1).unref();
    this.#retryDelay = Math.min(slowestRetry, 2 * this.#retryDelay);
  }

  /** Why no connection can be had, null when that is not so. */
  get failure(): ErrorFields | null {
    return this.#lastFailure;
  }
}
