/**
 * Clients that do nothing, or go on, for longer than an operator allows: client_idle_timeout, idle_transaction_timeout,
 * transaction_timeout, query_timeout.
 * Invariant: nobody is ended before a limit has passed in full. Nothing here runs while bytes are forwarded: sessions are looked at now
 * and then, and a period counts from the first look that saw it, so that a limit is exceeded by two looks at most.
 */
import { type ErrorFields, millraceError } from '../errors.ts';
import { overrideOf, type ProxySettings } from './pool/settings.ts';

/** What a look at a session sees. */
export interface Observation {
  /** waiting: for a server connection, or held by PAUSE; that has limits of its own. */
  readonly state: 'idle' | 'idle in transaction' | 'active' | 'waiting';
  /** How many transactions have ended, how many requests were answered, how many bytes the client has sent. */
  readonly transactions: number;
  readonly answered: number;
  readonly received: number;
}

/** In ms, 0 for none. */
export interface TimeLimits {
  readonly clientIdle: number;
  readonly idleTransaction: number;
  readonly transaction: number;
  readonly query: number;
}

export interface TimeoutPort<T extends { readonly identity: { readonly user: string } }> {
  settings(): ProxySettings;
  clients(): Iterable<T>;
  /** Null while no limit concerns it. */
  observe(client: T): Observation | null;
  end(client: T, error: ErrorFields): void;
}

type Limit = keyof TimeLimits;

/** SQLSTATEs and words of Postgres for its own timeouts of this kind. */
const words: Readonly<Record<Limit, { readonly limit: string; readonly code: string; readonly due: string }>> = {
  clientIdle: { limit: 'client_idle_timeout', code: '57P05', due: 'idle-session timeout' },
  idleTransaction: { limit: 'idle_transaction_timeout', code: '25P03', due: 'idle-in-transaction timeout' },
  transaction: { limit: 'transaction_timeout', code: '25P04', due: 'transaction timeout' },
  query: { limit: 'query_timeout', code: '57014', due: 'query timeout' },
};

/** Tells how long a session has been at what it does. */
export class Stopwatch {
  #last: Observation | null = null;
  #since = 0;
  #transactionSince = 0;

  /** The limit that is exceeded, or null. `now` in ms of any clock. */
  look(seen: Observation, now: number, limits: TimeLimits): Limit | null {
    const last = this.#last;
    this.#last = seen;
    const inTransaction = isInTransaction(seen);
    if (last === null || !inTransaction || !isInTransaction(last) || last.transactions !== seen.transactions) this.#transactionSince = now;
    if (last === null || last.state !== seen.state || last.answered !== seen.answered || last.received !== seen.received) this.#since = now;
    const exceeds = (since: number, limit: number): boolean => limit > 0 && now - since > limit;
    if (inTransaction && exceeds(this.#transactionSince, limits.transaction)) return 'transaction';
    switch (seen.state) {
      case 'idle':
        return exceeds(this.#since, limits.clientIdle) ? 'clientIdle' : null;
      case 'idle in transaction':
        return exceeds(this.#since, limits.idleTransaction) ? 'idleTransaction' : null;
      case 'active':
        return exceeds(this.#since, limits.query) ? 'query' : null;
      case 'waiting':
        return null;
    }
  }
}

function isInTransaction({ state }: Observation): boolean {
  return state === 'active' || state === 'idle in transaction';
}

/** The limits of a role. */
export function limitsOf(settings: ProxySettings, user: string): TimeLimits {
  const own = overrideOf(settings.perUser, user);
  return {
    clientIdle: own?.clientIdleTimeout ?? settings.clientIdleTimeout,
    idleTransaction: own?.idleTransactionTimeout ?? settings.idleTransactionTimeout,
    transaction: own?.transactionTimeout ?? settings.transactionTimeout,
    query: own?.queryTimeout ?? settings.queryTimeout,
  };
}

/** What a client is told that has exceeded a limit. */
export function timeoutError(limit: Limit, limits: TimeLimits): ErrorFields {
  const { limit: setting, code, due } = words[limit];
  return millraceError('client_timeout', { code, due, limit: setting, seconds: limits[limit] / 1_000 }).fields;
}

/** The shortest limit of any role; 0 when there is none. */
export function shortestLimit(settings: ProxySettings): number {
  const all = [limitsOf(settings, ''), ...Object.keys(settings.perUser).map((user) => limitsOf(settings, user))];
  const set = all.flatMap((limits) => Object.values<number>({ ...limits })).filter((limit) => limit > 0);
  return set.length === 0 ? 0 : Math.min(...set);
}

/** How often sessions are looked at: precise to a second, and more so where limits are short. */
const rarely = 1_000;
const often = 20;
const looksInALimit = 8;

/** Looks at clients as long as there are limits. Returns how to stop. */
export function watchTimeouts<T extends { readonly identity: { readonly user: string } }>(port: TimeoutPort<T>): () => void {
  let watches = new WeakMap<T, Stopwatch>();
  let timer: NodeJS.Timeout;
  let known: ProxySettings | null = null;
  let shortest = 0;
  const look = (): void => {
    const current = port.settings();
    if (current !== known) shortest = shortestLimit(current);
    known = current;
    if (shortest > 0) {
      const now = performance.now();
      for (const client of port.clients()) lookAt(client, current, now);
    } else watches = new WeakMap();
    timer = setTimeout(look, shortest === 0 ? rarely : Math.min(rarely, Math.max(often, shortest / looksInALimit)));
    timer.unref();
  };
  const lookAt = (client: T, current: ProxySettings, now: number): void => {
    const seen = port.observe(client);
    if (seen === null) return;
    let watch = watches.get(client);
    if (watch === undefined) {
      watch = new Stopwatch();
      watches.set(client, watch);
    }
    const limits = limitsOf(current, client.identity.user);
    const exceeded = watch.look(seen, now, limits);
    if (exceeded !== null) port.end(client, timeoutError(exceeded, limits));
  };
  look();
  return () => clearTimeout(timer);
}
