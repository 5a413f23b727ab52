/**
 * What an operator tells a worker.
 * Invariant: while a database is paused no request begins there: new clients wait at the door, those within wait where their transaction
 * ended. Transactions under way are never cut, but by KILL and KILL_CLIENT.
 */
import type { Socket } from 'node:net';
import { type ErrorFields, millraceError } from '../errors.ts';
import type { ClientTls } from './client-tls.ts';
import type { LiveClient, LiveClients } from './live-clients.ts';
import type { Pool } from './pool/pool.ts';
import type { Pools } from './pool/pools.ts';
import type { CommandOutcome, WorkerCommand } from './pool/report.ts';
import type { Session, SessionIdentity } from './session.ts';
import type { StatementHolds } from './statement-holds.ts';

/** How often PAUSE and WAIT_CLOSE look whether they are done. */
const look = 20;
/** How long a cutover lets statements be answered before it asks for locks, in ms. */
const longestSettling = 3;

export class LiveCommands {
  readonly #clients: LiveClients;
  readonly #pools: Pools;
  readonly #tls: ClientTls;
  readonly #holds: StatementHolds;
  readonly #cutOff: (session: Session, error: ErrorFields) => void;
  #pausedAll = false;
  readonly #paused = new Set<string>();
  readonly #disabled = new Set<string>();

  /** `cutOff` ends a session in the middle of whatever it does. */
  constructor(
    clients: LiveClients,
    pools: Pools,
    tls: ClientTls,
    holds: StatementHolds,
    cutOff: (session: Session, error: ErrorFields) => void,
  ) {
    this.#clients = clients;
    this.#pools = pools;
    this.#tls = tls;
    this.#holds = holds;
    this.#cutOff = cutOff;
  }

  readonly isPaused = (database: string): boolean => this.#pausedAll || this.#paused.has(database);

  /** Whether a client may come in: null at once, else when the promise resolves. Rejects with a MillraceError. */
  admit(socket: Socket, identity: SessionIdentity): Promise<void> | null {
    const { database } = identity;
    if (this.#disabled.has(database)) return Promise.reject(millraceError('database_disabled', { database }));
    if (!this.isPaused(database)) return null;
    const { waiting } = this.#clients;
    const id = this.#clients.newId();
    return new Promise<void>((resolve, reject) => {
      const refuse = (): void => reject(millraceError('database_paused', { database }));
      const patience = this.#pools.settings.queryWaitTimeout;
      const timer = patience === 0 ? undefined : setTimeout(refuse, patience);
      const finish = (then: () => void) => (): void => {
        clearTimeout(timer);
        waiting.delete(id);
        then();
      };
      waiting.set(id, { id, identity, socket, since: Date.now(), release: finish(resolve), refuse: finish(refuse) });
      socket.once('close', () => waiting.get(id)?.refuse());
      timer?.unref();
    });
  }

  /** A session was made. One that logged in while its database was being paused waits too. */
  entered(client: LiveClient): void {
    if (this.isPaused(client.identity.database) && !client.identity.replication) client.session.pause();
  }

  async run(command: WorkerCommand): Promise<CommandOutcome> {
    const clients = this.#clients;
    switch (command.command) {
      case 'reload':
        this.#tls.replace(command.settings.tls);
        this.#pools.settings = command.settings;
        return { found: true };
      case 'pause':
        await this.#pause(command.database);
        return { found: true };
      case 'resume':
        this.#resume(command.database);
        return { found: true };
      case 'disable':
        this.#disabled.add(command.database);
        return { found: true };
      case 'enable':
        this.#disabled.delete(command.database);
        return { found: true };
      case 'reconnect':
        // A server connection lasts as long as its client: WAIT_CLOSE waits for those of now.
        clients.generation++;
        for (const pool of this.#pools.of(command.database)) pool.reconnect();
        return { found: true };
      case 'wait_close': {
        const { generation } = clients;
        const isReplaced = (client: LiveClient): boolean =>
          this.#pools.client(client.session) !== undefined || client.generation >= generation;
        const hasOld = (pool: Pool): boolean => [...pool.servers].some((server) => server.retired === 'RECONNECT');
        await this.#until(() => this.#of(command.database).every(isReplaced) && !this.#pools.of(command.database).some(hasOld));
        return { found: true };
      }
      case 'kill':
        this.#markPaused(command.database);
        for (const { session } of this.#of(command.database)) this.#cutOff(session, millraceError('administrator_shutdown').fields);
        for (const pool of this.#pools.of(command.database)) pool.kill();
        return { found: true };
      case 'kill_client': {
        const client = clients.clients.get(command.id);
        const waiting = clients.waiting.get(command.id);
        if (client !== undefined) this.#cutOff(client.session, millraceError('administrator_shutdown').fields);
        waiting?.socket.destroy();
        return { found: client !== undefined || waiting !== undefined };
      }
      case 'hold':
        this.#holds.begin(command.order);
        if (command.order.unknown) await this.#settled(command.order.database);
        return { found: true };
      case 'let_go':
        if (command.changed.length > 0) this.#pools.changed(command.database, command.changed);
        if (command.id === null) this.#holds.endAll(command.database);
        else this.#holds.end(command.id);
        return { found: true };
    }
  }

  /**
   * What has just gone out has been answered, or takes longer. It may not have its locks yet: whoever asks for them now would come before it.
   */
  async #settled(database: string): Promise<void> {
    const asked = this.#of(database).filter(({ session, identity }) => !identity.replication && session.isWaitedFor);
    const under = asked.map(({ session }) => ({ session, answered: session.ledger.answered }));
    const deadline = performance.now() + longestSettling;
    const isOver = ({ session, answered }: (typeof under)[number]): boolean => !session.isWaitedFor || session.ledger.answered !== answered;
    while (!under.every(isOver) && performance.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  async #pause(database: string | null): Promise<void> {
    this.#markPaused(database);
    for (const client of this.#of(database)) this.entered(client);
    // RESUME ends the wait too.
    const paused = (): boolean => (database === null ? this.#pausedAll : this.#paused.has(database));
    await this.#until(() => !paused() || this.#of(database).every(({ session, identity }) => identity.replication || session.resting));
    // As PgBouncer: the server can be restarted now.
    if (paused()) for (const pool of this.#pools.of(database)) pool.reconnect();
  }

  #markPaused(database: string | null): void {
    if (database === null) this.#pausedAll = true;
    else this.#paused.add(database);
  }

  #resume(database: string | null): void {
    if (database === null) {
      this.#pausedAll = false;
      this.#paused.clear();
    } else this.#paused.delete(database);
    for (const { session, identity } of this.#of(database)) if (!this.isPaused(identity.database)) session.resume();
    for (const one of this.#clients.waiting.values()) if (!this.isPaused(one.identity.database)) one.release();
  }

  #of(database: string | null): readonly LiveClient[] {
    return [...this.#clients.clients.values()].filter(({ identity }) => database === null || identity.database === database);
  }

  async #until(done: () => boolean): Promise<void> {
    while (!done()) await new Promise((resolve) => setTimeout(resolve, look));
  }
}
