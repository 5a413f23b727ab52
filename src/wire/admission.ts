/**
 * Who may come in: the limits on clients, and in session mode those on server connections, where each client has one.
 * Invariant: the limits hold, those who are still logging in included; those who wait for a server connection get it in the order they
 * came, as far as the limits of their database and role allow.
 */
import type { Socket } from 'node:net';
import { millraceError } from '../errors.ts';
import type { WaitingClient } from './live-clients.ts';
import type { Pools } from './pool/pools.ts';
import type { Session, SessionIdentity } from './session.ts';

interface Inside {
  readonly identity: SessionIdentity;
  /** It has, or is about to have, a server connection of its own. */
  hasServer: boolean;
}

/** Connections of pools end without anybody being told here. */
const look = 100;

export class Admission {
  readonly #pools: Pools;
  readonly #waiting: Map<string, WaitingClient>;
  readonly #newId: () => string;
  readonly #inside = new Map<SessionIdentity, Inside>();
  readonly #sessions = new WeakMap<Session, SessionIdentity>();
  /** In the order they came. */
  readonly #queue = new Map<string, { readonly inside: Inside; readonly enter: () => void }>();
  #timer: NodeJS.Timeout | undefined;

  /** `waiting`: where those who wait are shown. */
  constructor(pools: Pools, waiting: Map<string, WaitingClient>, newId: () => string) {
    this.#pools = pools;
    this.#waiting = waiting;
    this.#newId = newId;
    pools.ownServers = (of, name) => this.#count(({ identity, hasServer }) => hasServer && identity[of] === name);
  }

  /** Lets a client in, or throws a MillraceError. It counts until its socket, or the session that takes it over, is closed. */
  enter(socket: Socket, identity: SessionIdentity): void {
    const crowd = this.#pools.crowd(identity.database, identity.user, (of) =>
      of === 'all' ? this.#inside.size : this.#count((one) => one.identity[of] === identity[of]),
    );
    if (crowd !== null) throw crowd;
    this.#inside.set(identity, { identity, hasServer: false });
    socket.once('close', () => this.#leave(identity));
  }

  /** From now on the session says when the client leaves: its socket may be wrapped in another. */
  opened(session: Session, identity: SessionIdentity): void {
    this.#sessions.set(session, identity);
  }

  closed(session: Session): void {
    const identity = this.#sessions.get(session);
    if (identity !== undefined) this.#leave(identity);
  }

  #leave(identity: SessionIdentity): void {
    if (this.#inside.delete(identity)) this.#serve();
  }

  /** A client that is in is to have a server connection of its own: null at once, else when the promise resolves. */
  ownServer(socket: Socket, identity: SessionIdentity): Promise<void> | null {
    const inside = this.#inside.get(identity);
    if (inside === undefined) return null;
    if (![...this.#queue.values()].some((other) => shares(other.inside.identity, identity)) && this.#mayOpen(inside)) return null;
    const id = this.#newId();
    return new Promise<void>((resolve, reject) => {
      const patience = this.#pools.settings.queryWaitTimeout;
      const finish = (then: () => void) => (): void => {
        clearTimeout(timer);
        this.#queue.delete(id);
        this.#waiting.delete(id);
        then();
      };
      const refuse = finish(() => reject(millraceError('query_wait_timeout', { seconds: patience / 1_000 })));
      const timer = patience === 0 ? undefined : setTimeout(refuse, patience).unref();
      this.#queue.set(id, { inside, enter: finish(resolve) });
      this.#waiting.set(id, { id, identity, socket, since: Date.now(), release: () => this.#serve(), refuse });
      socket.once('close', () => this.#waiting.get(id)?.refuse());
      this.#lookAgain();
    });
  }

  #serve(): void {
    const held: SessionIdentity[] = [];
    for (const { inside, enter } of this.#queue.values()) {
      const { identity } = inside;
      if (!held.some((other) => shares(other, identity)) && this.#mayOpen(inside)) enter();
      else held.push(identity);
    }
  }

  #mayOpen(inside: Inside): boolean {
    if (!this.#pools.mayOpen(inside.identity.database, inside.identity.user)) return false;
    inside.hasServer = true;
    return true;
  }

  #lookAgain(): void {
    this.#timer ??= setInterval(() => {
      this.#serve();
      if (this.#queue.size > 0) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
    }, look).unref();
  }

  #count(is: (inside: Inside) => boolean): number {
    let count = 0;
    for (const inside of this.#inside.values()) if (is(inside)) count++;
    return count;
  }
}

/** Whether two come under a common limit. */
function shares(one: SessionIdentity, other: SessionIdentity): boolean {
  return one.database === other.database || one.user === other.user;
}
