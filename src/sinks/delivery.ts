/**
 * The delivery of one sink: reads its outbox, writes to its target, remembers how far it is.
 * Invariant: a position is committed at the target together with what it says is out, and only for epochs that are on disk here, so that a crash of
 * either side neither loses nor repeats a change. What the catalog says of the progress follows; it only decides what may be cleared away.
 */

import { backfillTable } from '../catalog/sink-model.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { Wakeup } from '../wakeup.ts';
import { type Change, ChangeMaker } from './changes.ts';
import type { RowsHandler } from './line-reader.ts';
import { firstBatch, look, type Outlook, type ReadPlan, readBackfill, readChanges } from './outbox-reader.ts';
import { isLater, type Position } from './positions.ts';
import type { StoredSink, StoredVersion } from './sink-catalog.ts';
import { type Target, TargetError } from './target.ts';

const idleMs = 1000;
/** How long a delivery that is to end may be under way. */
const stopMs = 2000;
const firstPauseMs = 250;
const longestPauseMs = 30_000;
/** A sink that is idle says so this often, so that what it has taken can be cleared away. */
const sayEveryMs = 2000;

export interface DeliveryPorts {
  /** A session of its own. */
  readonly session: RawConnection;
  readonly token: string;
  /** Makes its target; throws TargetError. `waits`: told what the target has not answered for, while it is still waited for. */
  readonly target: (sink: StoredSink, waits: (what: TargetError) => void) => Promise<Target>;
  /** Runs a statement of the catalog over a session that is not in the middle of reading. */
  readonly tell: (sql: string) => Promise<void>;
  /** Reads a version of a sink; null: there is no such version. */
  readonly versionOf: (sinkId: number, version: number) => Promise<StoredVersion | null>;
  readonly counted: (sinkId: number, messages: number, bytes: number) => void;
  readonly log: { warn(object: unknown, text: string): void; info(object: unknown, text: string): void };
  readonly now: () => number;
}

export class Delivery {
  readonly sink: StoredSink;
  readonly #ports: DeliveryPorts;
  #stopping = false;
  readonly #wakeup = new Wakeup();
  #target: Target | null = null;
  #version: StoredVersion | null = null;
  /** Whether the version is as the catalog has it. */
  #isKnown = false;
  #status = '';
  /** What it was said to be stalled by. */
  #failure = '';
  /** What is said comes in order. */
  #saying: Promise<void> = Promise.resolve();
  #said: Position | null = null;
  #saidAt = 0;
  readonly ended: Promise<void>;

  constructor(sink: StoredSink, ports: DeliveryPorts) {
    this.sink = sink;
    this.#ports = ports;
    this.#status = sink.status;
    this.ended = this.#run();
  }

  /** There may be something to deliver. */
  wake(): void {
    this.#wakeup.wake();
  }

  /** The columns of what it delivers may have got other types. */
  reread(): void {
    this.#isKnown = false;
    this.wake();
  }

  /** Ends after what is under way; a target that does not answer is left. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.wake();
    const patience = setTimeout(() => void this.#target?.close(), stopMs);
    await this.ended;
    clearTimeout(patience);
  }

  async #pause(ms: number): Promise<void> {
    if (!this.#stopping) await this.#wakeup.pause(ms);
  }

  async #run(): Promise<void> {
    const { log } = this.#ports;
    let pauseMs = firstPauseMs;
    while (!this.#stopping) {
      try {
        await this.#deliver(() => {
          pauseMs = firstPauseMs;
        });
      } catch (error) {
        if (this.#stopping) break;
        const failure =
          error instanceof TargetError ? error : new TargetError('retriable', error instanceof Error ? error.message : String(error));
        log.warn({ sink: this.sink.id, name: this.sink.name, err: error, kind: failure.kind }, 'a sink stands still');
        await this.#say('stalled', failure).catch(() => undefined);
        if (this.#ports.session.transactionStatus !== 'I') await this.#ports.session.query('ROLLBACK').catch(() => undefined);
      } finally {
        await this.#close();
      }
      if (this.#stopping) break;
      const until = this.#ports.now() + pauseMs;
      // What wakes it says nothing of the target.
      while (!this.#stopping && this.#ports.now() < until) await this.#pause(until - this.#ports.now());
      pauseMs = Math.min(pauseMs * 2, longestPauseMs);
    }
  }

  async #close(): Promise<void> {
    const target = this.#target;
    this.#target = null;
    this.#version = null;
    await target?.close();
  }

  /** Until it is stopped, paused or dropped, or something fails. `well`: the target takes what it is given. */
  async #deliver(well: () => void): Promise<void> {
    const { session, token } = this.#ports;
    if (!(await this.#leads())) {
      await this.#pause(idleMs);
      return;
    }
    const target = await this.#ports.target(this.sink, (what) => this.#waits(what));
    this.#target = target;
    const reached = await target.open();
    let position = await this.#start(reached);
    while (!this.#stopping) {
      position ??= await this.#start(null);
      if (position === null) {
        await this.#pause(idleMs);
        continue;
      }
      const version = await this.#describe(target, position.version);
      // Not before: whoever waits for CREATE SINK is to hear that the target does not take its columns. After a failure only what has been
      // delivered says that it is over.
      const runs = async (): Promise<void> => {
        await this.#say('running', null);
        well();
      };
      if (this.#status !== 'stalled' && target.prove === undefined) await runs();
      const outlook = await look(session, this.sink.id, version.relationId, position, token);
      if (!outlook.leads || !outlook.exists) return;
      const stuck = outlook.paused ? null : this.#stuck(position, outlook);
      if (stuck !== null) {
        await this.#say('stalled', stuck);
        await this.#pause(idleMs);
        continue;
      }
      const next = outlook.paused ? null : await this.#step(target, position, version, outlook);
      if (!outlook.paused) {
        if (this.#status !== 'running') await target.prove?.();
        await runs();
      }
      if (next === null) {
        await this.#record(position, outlook);
        await this.#pause(idleMs);
        continue;
      }
      const isFilled = position.backfillSeq !== null && next.backfillSeq === null;
      position = next;
      await this.#record(position, null);
      if (isFilled) await session.query(`DROP TABLE IF EXISTS ${backfillTable(this.sink.id, position.version)}`);
    }
  }

  /** What only another version helps against; null: nothing. */
  #stuck(position: Position, outlook: Outlook): TargetError | null {
    if (outlook.next !== null) return null;
    if (outlook.overrun) return overrun(this.sink.name);
    return outlook.isGone && outlook.segment === null && position.backfillSeq === null ? gone(this.sink.name) : null;
  }

  /** One batch, or the step to the next version. Null: there is nothing to do. */
  async #step(target: Target, position: Position, version: StoredVersion, outlook: Outlook): Promise<Position | null> {
    const { next } = outlook;
    const follows = next === null ? null : { version: next.version, ts: next.cutTs, backfillSeq: next.hasBackfill ? 0 : null };
    if (outlook.overrun) {
      await this.#ports.session.query(`UPDATE millrace.sink_progress SET overrun = false WHERE sink_id = ${this.sink.id}`);
      return follows;
    }
    if (position.backfillSeq !== null) return await this.#backfill(target, position, version, position.backfillSeq);
    const { segment, bound, now } = outlook;
    if (segment === null) return follows;
    const due = { segment, after: position.ts, upTo: Math.min(now, bound ?? now) };
    const range = await firstBatch(this.#ports.session, this.sink.id, version.relationId, due);
    const to: Position = { version: position.version, ts: range.upTo, backfillSeq: null };
    await this.#batch(target, version, to, (plan, take) => readChanges(this.#ports.session, version.relationId, plan, range, take));
    return to;
  }

  async #backfill(target: Target, position: Position, version: StoredVersion, after: number): Promise<Position> {
    let last: number | null = null;
    const range = { after, ts: position.ts };
    const done = (): Position => ({ ...position, backfillSeq: last });
    await this.#batch(target, version, done, async (plan, take) => {
      last = await readBackfill(this.#ports.session, this.sink.id, position.version, plan, range, take);
    });
    return done();
  }

  /** One transaction at the target. */
  async #batch(
    target: Target,
    version: StoredVersion,
    to: Position | (() => Position),
    read: (plan: ReadPlan, take: RowsHandler) => Promise<void>,
  ): Promise<void> {
    const maker = new ChangeMaker(target.pairing);
    let messages = 0;
    let bytes = 0;
    await target.begin();
    const write = async (changes: readonly Change[]): Promise<void> => {
      messages += changes.length;
      if (changes.length > 0) bytes += await target.write(changes);
    };
    await read(this.#plan(version), async (rows) => {
      const changes: Change[] = [];
      for (const row of rows) maker.add(row, changes);
      await write(changes);
    });
    const rest: Change[] = [];
    maker.flush(rest);
    await write(rest);
    const position = typeof to === 'function' ? to() : to;
    // Epochs commit without waiting for the disk. This one does, and what was committed before it is on disk then, too.
    await this.#flush();
    await target.commit(position);
    this.#ports.counted(this.sink.id, messages, bytes);
  }

  #plan({ columns }: StoredVersion): ReadPlan {
    const { key, target } = this.sink.definition;
    return { columns, key, partitionBy: target.type === 'kafka' ? target.partitionBy : null };
  }

  /** The version that is to be delivered; the target knows its columns. */
  async #describe(target: Target, number: number): Promise<StoredVersion> {
    if (this.#isKnown && this.#version?.version === number) return this.#version;
    this.#isKnown = true;
    const version = await this.#ports.versionOf(this.sink.id, number);
    if (version === null) throw new TargetError('retriable', `there is no version ${number} of the sink`);
    const isSame = this.#version?.version === number && JSON.stringify(this.#version.columns) === JSON.stringify(version.columns);
    if (!isSame) await target.describe(version.columns);
    this.#version = version;
    return version;
  }

  /** Where to go on: as the target says, or where the catalog says that the sink begins. */
  async #start(reached: Position | null): Promise<Position | null> {
    const { session, token } = this.#ports;
    const [answer] = await session.query(
      `SELECT p.version, p.ts, p.backfill_seq, e.ts, e.token FROM millrace.epoch e LEFT JOIN millrace.sink_progress p ON p.sink_id = ${this.sink.id}`,
    );
    const [version, ts, seq, now, leader] = answer?.rows[0] ?? [];
    if (leader !== token) return null;
    if (version === null || version === undefined) return null;
    const recorded: Position = {
      version: Number(version),
      ts: Number(ts),
      backfillSeq: seq === null || seq === undefined ? null : Number(seq),
    };
    if (reached === null) return recorded;
    if (reached.ts > Number(now)) {
      throw new TargetError(
        'permanent',
        `the target is ahead of this database: it has changes up to ${new Date(reached.ts).toISOString()}`,
        {
          hint: 'This database was restored to an earlier state. DROP SINK and create it with a new topic or target.',
        },
      );
    }
    // Never back: what is behind the recorded position may have been cleared away.
    return isLater(recorded, reached) ? recorded : reached;
  }

  async #leads(): Promise<boolean> {
    const [answer] = await this.#ports.session.query('SELECT e.token FROM millrace.epoch e');
    return answer?.rows[0]?.[0] === this.#ports.token;
  }

  /** What the catalog is told while a sink is idle: it has everything up to the last epoch, or to where it is held. */
  async #record(position: Position, idle: Outlook | null): Promise<void> {
    const now = this.#ports.now();
    const ts = idle === null || idle.paused ? position.ts : Math.max(position.ts, Math.min(idle.now, idle.bound ?? idle.now));
    const at: Position = { ...position, ts };
    const moved = this.#said === null || this.#said.version !== at.version || this.#said.backfillSeq !== at.backfillSeq;
    if (!moved && now - this.#saidAt < sayEveryMs) return;
    if (!moved && this.#said?.ts === at.ts) return;
    await this.#ports.session.query(
      `UPDATE millrace.sink_progress p SET version = ${at.version}, ts = ${at.ts}, backfill_seq = ${at.backfillSeq ?? 'NULL'}, updated_at = clock_timestamp()
         FROM millrace.epoch e WHERE p.sink_id = ${this.sink.id} AND e.token = ${this.#ports.token}`,
    );
    this.#said = at;
    this.#saidAt = now;
  }

  async #flush(): Promise<void> {
    const [done] = await this.#ports.session.query(
      `UPDATE millrace.sink_progress p SET updated_at = clock_timestamp() FROM millrace.epoch e WHERE p.sink_id = ${this.sink.id} AND e.token = ${this.#ports.token}`,
    );
    if (done?.tag !== 'UPDATE 1') throw new TargetError('fenced', 'another Millrace process delivers for this sink');
  }

  /** The target does not answer yet; it is waited for. */
  #waits(what: TargetError): void {
    if (this.#stopping) return;
    if (this.#failure !== what.message)
      this.#ports.log.warn({ sink: this.sink.id, name: this.sink.name, err: what }, 'a sink waits for its target');
    this.#say('stalled', what).catch(() => undefined);
  }

  #say(status: 'running' | 'stalled', failure: TargetError | null): Promise<void> {
    const saying = this.#saying.then(() => this.#sayNow(status, failure));
    this.#saying = saying.catch(() => undefined);
    return saying;
  }

  async #sayNow(status: 'running' | 'stalled', failure: TargetError | null): Promise<void> {
    const said = failure === null ? '' : failure.message;
    if (this.#status === status && (status === 'running' || this.#failure === said)) return;
    const error = failure === null ? 'NULL' : quoteLiteral(failure.message);
    const details = failure?.hint === null || failure === null ? 'NULL' : `jsonb_build_object('hint', ${quoteLiteral(failure.hint)})`;
    await this.#ports.tell(
      `UPDATE millrace.sink s SET status = '${status}', error = ${error}, details = ${details},
              status_since = CASE WHEN s.status = '${status}' AND s.error IS NOT DISTINCT FROM ${error} THEN s.status_since ELSE now() END
         FROM millrace.epoch e WHERE s.id = ${this.sink.id} AND s.status <> 'dropped' AND e.token = ${this.#ports.token}`,
    );
    this.#status = status;
    this.#failure = said;
  }
}

const overrun = (name: string): TargetError =>
  new TargetError(
    'permanent',
    'changes were thrown away: the outbox had grown to its limit, or the relation was filled anew with other types',
    {
      hint: `Type: ALTER SINK ${name} SET FROM <its relation> WITH (BACKFILL = snapshot); to emit every row again.`,
    },
  );

const gone = (name: string): TargetError =>
  new TargetError('permanent', 'the relation it reads was dropped', {
    hint: `Type: ALTER SINK ${name} SET FROM <another relation>; or DROP SINK ${name};`,
  });
