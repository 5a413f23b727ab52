/**
 * One client connection and its upstream connection.
 * Invariant: bytes go through in order and unchanged, except while a message of the client is taken over; then the client's further
 * bytes are held until that message has been answered in full, and the session goes on as if the upstream had answered.
 * The path of ordinary traffic is synchronous and allocates nothing a message.
 */
import type { Socket } from 'node:net';
import { type ErrorFields, millraceError } from '../errors.ts';
import type { Logger } from '../log.ts';
import type { StatementRunner } from '../statements/caller-session.ts';
import { AuthenticationGuard, AuthenticationSink } from './authentication.ts';
import { BetweenTransactions, type RestPort } from './between-transactions.ts';
import { ClientIntake } from './client-intake.ts';
import { CommitWatch } from './commit-tasks.ts';
import type { Counters } from './counters.ts';
import { parameter } from './decode.ts';
import { ConnectionLost, Driver, type DriverPort } from './driver.ts';
import type { Charset } from './encode.ts';
import { linger, sayGoodbye } from './farewell.ts';
import { Ledger } from './ledger.ts';
import { LocalNames } from './local-names.ts';
import { takeExtended } from './pipeline.ts';
import { ReplyWalker } from './replies.ts';
import { type Gate, RequestWalker } from './requests.ts';
import type { SessionFacts } from './session-facts.ts';
import { takeQuery } from './simple-query.ts';
import { type SocketWriter, socketWriter } from './socket-writer.ts';
import type { HeldRequest, StatementHolds } from './statement-holds.ts';
import type { PeerSocket, StaticReader } from './static-reader.ts';
import { Reply, Request, Status } from './tags.ts';
import { restBeforeQuery, type StatementParser, type Taken } from './taken.ts';
import { runTasks } from './tasks.ts';
import type { UpstreamLink } from './upstream-link.ts';

export interface SessionServices {
  readonly runner: StatementRunner;
  readonly mayBeExtended: Gate;
  readonly parseStatements: StatementParser;
  readonly counters: Counters;
  readonly holds: StatementHolds;
  readonly log: Logger;
}

export interface SessionIdentity {
  readonly user: string;
  readonly database: string;
  readonly replication: boolean;
}

export class Session implements DriverPort {
  readonly ledger = new Ledger();
  charset: Charset = 'utf8';
  readonly #client: Socket;
  readonly #writer: SocketWriter;
  readonly #upstream: UpstreamLink;
  readonly #services: SessionServices;
  readonly #holds: StatementHolds;
  readonly #names = new LocalNames();
  readonly #requests: RequestWalker;
  readonly #intake: ClientIntake;
  readonly #replies: ReplyWalker;
  readonly #driver: Driver;
  readonly #watch: CommitWatch;
  readonly #between: BetweenTransactions;
  readonly #taken: Taken;
  readonly #lexer: { standardConformingStrings: boolean } = { standardConformingStrings: true };
  #guard: AuthenticationGuard | null = new AuthenticationGuard();
  #onAuthenticated: () => void;
  #clientPaused = false;
  /** The client does not take what it was sent, and the upstream is listened to all the same. */
  #hearsAlways = false;
  #clientEnded = false;
  #closed = false;
  /** What the client sent last, when it has to wait for tables that change. */
  #kept: HeldRequest | null = null;
  #backendKey: Buffer = Buffer.alloc(0);
  /** Transactions that consisted of statements of ours. */
  #ownTransactions = 0;
  #applicationName = '';

  constructor(
    client: PeerSocket,
    upstream: UpstreamLink,
    identity: SessionIdentity,
    services: SessionServices,
    hooks: { authenticated(): void; closed(): void },
  ) {
    this.#client = client.socket;
    this.#writer = socketWriter(client);
    this.#upstream = upstream;
    this.#services = services;
    this.#holds = services.holds;
    this.#onAuthenticated = hooks.authenticated;
    this.#requests = new RequestWalker(this.ledger, services.mayBeExtended, this.#names);
    this.#requests.gateOpen = identity.replication;
    this.#intake = new ClientIntake(this.#requests, {
      toUpstream: (bytes) => this.toUpstream(bytes),
      takeOver: (message) => void this.#take(() => this.#takeOver(message)),
      pauseClient: () => this.#pauseClient(),
    });
    this.#between = new BetweenTransactions(this.#restPort());
    const target = {
      forward: (bytes: Buffer) => this.toClient(bytes),
      parameterStatus: (message: Buffer) => this.parameterStatus(message),
      readyForQuery: () => this.#readyForQuery(),
    };
    this.#replies = new ReplyWalker(this.ledger, target);
    this.#driver = new Driver(this);
    this.#watch = new CommitWatch(this, {
      ended: (outcome, ready) => void this.#take(() => runTasks(this.#taken, outcome, ready)),
      answered: () => this.#release(),
    });
    this.#taken = {
      ...identity,
      driver: this.#driver,
      ledger: this.ledger,
      names: this.#names,
      watch: this.#watch,
      runner: services.runner,
      counters: services.counters,
      log: services.log,
      mayBeExtended: services.mayBeExtended,
      parse: (text) => {
        const subscriptionCursors = this.#names.cursors.size > 0 || /subscribe/i.test(text);
        return services.parseStatements(text, { ...this.#lexer, subscriptionCursors });
      },
      forward: (message) => this.#intake.forward(message),
      relayCopyIn: () => {
        this.#intake.relayCopyIn();
        this.#resumeClient();
      },
      endCopyIn: () => this.#intake.endCopyIn(),
    };
    this.#replies.sink = new AuthenticationSink(target, this.ledger, {
      authenticated: () => {
        this.#guard = null;
        this.#onAuthenticated();
      },
      backendKey: (key) => {
        this.#backendKey = key;
      },
      ready: () => {
        this.ledger.answered = 0;
        this.ledger.transactions = 0;
        this.#replies.sink = null;
        this.#readyForQuery();
      },
    });
    this.#listen(client.reader, hooks.closed);
  }

  /** Sends the startup packet, and what the client sent behind it. */
  start(startup: Buffer, rest: Buffer): void {
    // The startup packet is answered by a ReadyForQuery too.
    this.ledger.query();
    this.toUpstream(startup);
    if (rest.length > 0) this.#fromClient(rest);
    this.#client.resume();
    this.#upstream.resume();
  }

  /** Goes on with a client that Millrace has authenticated itself. `welcome`: what it is told up to ReadyForQuery. */
  startAuthenticated(welcome: readonly Buffer[], rest: Buffer): void {
    this.#guard = null;
    this.#replies.sink = null;
    this.#onAuthenticated();
    for (const message of welcome) {
      if (message[0] === Reply.parameterStatus) this.parameterStatus(message);
    }
    this.toClient(Buffer.concat(welcome));
    if (rest.length > 0) this.#fromClient(rest);
    this.#client.resume();
  }

  toClient(bytes: Buffer): void {
    this.#services.counters.bytesToClients += bytes.length;
    // `write` says false for a large chunk even when the kernel took it at once.
    if (!this.#writer.write(bytes) && this.#writer.pending > 0 && !this.#hearsAlways) this.#upstream.pause();
  }

  hearsAlways(): void {
    this.#hearsAlways = true;
    this.#upstream.resume();
  }

  toUpstream(bytes: Buffer): void {
    if (!this.#upstream.write(bytes) && this.#upstream.pending > 0) this.#pauseClient();
  }

  async drained(): Promise<void> {
    const client = this.#client;
    if (client.destroyed) throw new ConnectionLost();
    if (!this.#writer.isFull) return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        client.off('drain', done);
        client.off('close', done);
        resolve();
      };
      client.on('drain', done);
      client.on('close', done);
    });
  }

  parameterStatus(message: Buffer): void {
    const { name, value } = parameter(message);
    if (name === 'client_encoding') this.charset = value === 'UTF8' || value === 'SQL_ASCII' ? 'utf8' : 'latin1';
    else if (name === 'application_name') this.#applicationName = value;
    else if (name === 'standard_conforming_strings') this.#lexer.standardConformingStrings = value !== 'off';
  }

  facts(): SessionFacts {
    return {
      client: this.#client,
      upstream: this.#upstream.socket,
      ledger: this.ledger,
      authenticated: this.#guard === null,
      busy: this.isAsked || this.ledger.status !== Status.idle,
      backendPid: this.#backendKey.length < 4 ? 0 : this.#backendKey.readInt32BE(0),
      backendKey: this.#backendKey,
      transactions: this.ledger.transactions + this.#ownTransactions,
      applicationName: this.#applicationName,
    };
  }

  /** A request is under way. */
  get isAsked(): boolean {
    return this.#intake.holding || !this.ledger.quiet;
  }

  /** Paused, and no transaction is open: nothing of the client goes on before `resume`. */
  get resting(): boolean {
    return this.#between.resting;
  }

  /** Holds the client's next request, once its transaction has ended. */
  pause(): void {
    this.#replies.alert = true;
    this.#between.pause();
  }

  resume(): void {
    this.#between.resume();
  }

  /** The upstream has a request of the client to answer. Those that are taken over are none: one of them may be what the others wait for. */
  get isWaitedFor(): boolean {
    return !this.#intake.holding && !this.ledger.quiet;
  }

  /** A request that waits for tables that change goes on now, to wait at their locks. Answers whether there was one. */
  letGo(): boolean {
    const kept = this.#kept;
    kept?.letGo();
    return kept !== null;
  }

  /** Ends the session as soon as no transaction is open. */
  drain(): void {
    this.#replies.alert = true;
    this.#between.drain();
  }

  /** Ends the session now, with the words Postgres has for it. */
  shutDown(): void {
    this.#dismiss(millraceError('administrator_shutdown').fields);
  }

  /** Ends the session now, whatever is under way. */
  cutOff(error: ErrorFields): void {
    this.#dismiss(error);
    this.#upstream.destroy();
  }

  /** Cuts both connections. */
  destroy(): void {
    this.#client.destroy();
    this.#upstream.destroy();
  }

  #listen(clientReader: StaticReader | null, closed: () => void): void {
    const client = this.#client;
    const upstream = this.#upstream;
    const done = (): void => {
      if (!this.#closed) closed();
      this.#closed = true;
    };
    if (clientReader === null) client.on('data', (chunk: Buffer) => this.#fromClient(chunk));
    else {
      clientReader.receive = (chunk) => {
        this.#fromClient(chunk);
        return this.#intake.holding || this.#intake.gathering || upstream.pending > 0;
      };
    }
    client.on('drain', () => {
      this.#hearsAlways = false;
      upstream.resume();
    });
    client.on('end', () => this.#clientEnd());
    client.on('error', () => client.destroy());
    client.on('close', () => {
      // What the client has sent is still delivered, as a server would have read it.
      this.letGo();
      this.#driver.lost();
      this.#names.transactionEnded();
      upstream.abandon();
      if (upstream.isClosed) done();
    });
    upstream.listen({
      receive: (chunk) => {
        this.#fromUpstream(chunk);
        return this.#writer.pending > 0 && !this.#hearsAlways;
      },
      drain: () => this.#resumeClient(),
      end: () => this.#upstreamEnd(),
      refused: (error) => this.#dismiss(error),
      closed: () => {
        this.#driver.lost();
        this.#upstreamEnd();
        if (client.closed) done();
      },
    });
  }

  #fromUpstream(chunk: Buffer): void {
    // It has heard why it has to go.
    if (this.#client.writableEnded) return;
    try {
      this.#replies.push(chunk);
    } catch (error) {
      this.#services.log.error({ err: error }, 'a reply of the upstream could not be read');
      this.destroy();
    }
  }

  #fromClient(chunk: Buffer): void {
    this.#services.counters.bytesFromClients += chunk.length;
    if (this.#guard !== null) {
      if (!this.#guard.allows(chunk)) this.#refuse('expected a password response');
      else this.toUpstream(chunk);
      return;
    }
    if (this.#holds.on && this.#isKept(chunk)) return;
    this.#intake.push(chunk);
  }

  /** Whether the chunk waits until tables that it may touch have changed. Within a transaction nothing does: who changes them waits for its end. */
  #isKept(chunk: Buffer): boolean {
    if (this.#intake.gathering || !this.#isIdle) return false;
    this.#kept = this.#holds.keep(
      this.#taken.database,
      chunk,
      (name) => this.#upstream.preparedText(name),
      () => {
        this.#kept = null;
        if (!this.#client.destroyed && !this.#client.writableEnded) this.#release();
      },
    );
    if (this.#kept === null) return false;
    this.#intake.hold();
    this.#intake.push(chunk);
    return true;
  }

  /** No transaction is open, and nothing of the client is under way. */
  get #isIdle(): boolean {
    if (this.#closed || this.#guard !== null || this.#intake.holding) return false;
    return this.ledger.quiet && this.ledger.status === Status.idle;
  }

  async #takeOver(message: Buffer): Promise<void> {
    if (message[0] === Request.query) return await takeQuery(this.#taken, message);
    if (message[0] !== Request.functionCall) return await takeExtended(this.#taken, message);
    await restBeforeQuery(this.#taken);
    this.#intake.forward(message);
  }

  /** Runs a conversation of ours, then goes on with what the client sent meanwhile. */
  async #take(work: () => Promise<void>): Promise<void> {
    this.#intake.hold();
    this.#upstream.hold(true);
    this.#replies.sink = this.#driver;
    this.#driver.begin();
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ConnectionLost)) this.#services.log.error({ err: error }, 'a statement could not be carried out');
      // One that was told why it has to go shall be able to read it.
      if (this.#client.writableEnded) this.#upstream.destroy();
      else this.destroy();
      return;
    }
    if (this.ledger.status === Status.idle) {
      this.#ownTransactions++;
      if (!this.ledger.batchOpen) this.#names.transactionEnded();
    }
    const waiting = this.#watch.tasks.length > 0;
    this.#replies.sink = waiting ? this.#watch : null;
    this.#requests.oneAtATime = waiting;
    this.#replies.alert = this.#between.awaited || this.#names.any;
    this.#release();
  }

  #release(): void {
    this.#intake.release();
    if (this.#intake.holding) return;
    this.#upstream.hold(false);
    this.#resumeClient();
    if (this.#clientEnded) this.#upstream.end();
    else this.#between.check();
  }

  #readyForQuery(): void {
    if (this.ledger.quiet) {
      if (this.ledger.status === Status.idle) this.#names.transactionEnded();
      else if (this.ledger.status === Status.failed) this.#names.forgetPortals();
    }
    this.#replies.alert = this.#between.awaited || this.#names.any;
    this.#between.check();
  }

  #restPort(): RestPort {
    const session = this;
    return {
      get idle() {
        return session.#isIdle;
      },
      get halfSent() {
        return session.#intake.gathering;
      },
      end: () => this.shutDown(),
      pauseClient: () => this.#pauseClient(),
      resumeClient: () => this.#resumeClient(),
    };
  }

  #pauseClient(): void {
    this.#clientPaused = true;
    this.#client.pause();
  }

  #resumeClient(): void {
    if (!this.#clientPaused || this.#between.resting || this.#intake.full || this.#upstream.pending > 0) return;
    this.#clientPaused = false;
    this.#client.resume();
  }

  #clientEnd(): void {
    this.letGo();
    this.#clientEnded = true;
    if (!this.#intake.holding) this.#upstream.end();
    // It left without a word while we work for it: nobody is there to be told, so nothing is committed.
    else if (!this.#intake.terminated) this.destroy();
  }

  #upstreamEnd(): void {
    if (!this.#client.writableEnded) this.#client.end();
    this.#upstream.end();
    linger(this.#client);
  }

  /** Tells the client why it has to go. */
  #dismiss(error: ErrorFields): void {
    if (this.#closed || this.#client.writableEnded) return;
    this.resume();
    // In the middle of a message of the server the client would take it for a part of that.
    if (this.#replies.midMessage) this.#client.end();
    else sayGoodbye(this.#client, error, this.charset);
    this.#upstream.end();
    linger(this.#client);
  }

  #refuse(message: string): void {
    this.#services.counters.errors++;
    sayGoodbye(this.#client, millraceError('protocol_violation', { message }).fields, 'utf8');
    this.#upstream.destroy();
  }
}
