/**
 * `CallerSession` over the client's upstream connection.
 * Invariant: its statements are the extended protocol without Sync, so that several of them, and the client's own around them, are one
 * transaction; the client's unnamed statement and portal are touched only where a simple Query would drop them anyway.
 */
import type { NoticeFields } from '../errors.ts';
import {
  type CallerSession,
  type Feed,
  type FieldDescription,
  type QueryResult,
  type Question,
  UpstreamError,
} from '../statements/caller-session.ts';
import { commandTag, dataRowValues, errorFields, rowDescriptionFields } from './decode.ts';
import type { Driver, ReplyHandler } from './driver.ts';
import { bind, bindAs, close, describe, execute, flush, noticeResponse, parse, sync } from './encode.ts';
import { Disposition } from './replies.ts';
import { Reply, Status } from './tags.ts';

export type CommitTask = (session: CallerSession) => Promise<void>;

export interface Place {
  /** Statements to use upstream: '' in a simple Query, `reservedName` beside the client's own. */
  readonly name: string;
  /** Each query is followed by Sync: outside a transaction block it is a transaction of its own. */
  readonly eachSynced: boolean;
}

/** Messages in front of a query, in the same write. */
export interface Front {
  readonly bytes: Buffer;
  /** As of the driver; its last message is the end of the answers to `bytes`. */
  readonly handler: ReplyHandler;
  /** The last message was an error: the upstream skips the query. */
  readonly failed: boolean;
}

export interface CallerOptions extends Place {
  readonly database: string;
  readonly user: string;
  readonly inTransactionBlock: () => boolean;
  readonly onCommit: (task: CommitTask) => void;
  readonly cursors: Map<string, Feed>;
  /** What the client has bound to the statement. */
  readonly bound?: BoundParameters | undefined;
}

/** Parameters as the client sent them. */
export interface BoundParameters {
  /** As the upstream has resolved them. */
  readonly types: readonly number[];
  /** The part of Bind between the names and the result formats. */
  readonly values: Buffer;
}

export const reservedName = '__millrace';

/** The error of every query in a transaction that has failed. */
export function failedTransaction(): UpstreamError {
  const message = 'current transaction is aborted, commands ignored until end of transaction block';
  return new UpstreamError({ S: 'ERROR', V: 'ERROR', C: '25P02', M: message });
}

export function createCaller(driver: Driver, options: CallerOptions): CallerSession {
  // A runner may ask several things at once; the connection answers one after the other.
  let last: Promise<unknown> = Promise.resolve();
  const inOrder = <T>(work: () => Promise<T>): Promise<T> => {
    const next = last.then(work, work);
    last = next.catch(() => undefined);
    return next;
  };
  return {
    database: options.database,
    user: options.user,
    get inTransactionBlock() {
      return options.inTransactionBlock();
    },
    query: (sql, parameters = [], { quiet = false, bound = false } = {}) =>
      inOrder(() => runQuery(driver, options, sql, bound && options.bound !== undefined ? options.bound : parameters, quiet)),
    notice: (fields: NoticeFields) => driver.toClient(noticeResponse(fields, driver.charset)),
    onCommit: options.onCommit,
    isOneTransaction: !options.eachSynced,
    cursors: options.cursors,
  };
}

/** A session whose transaction has failed: every query is refused. Tells what is extended for certain from what would need a look. */
export function refusingCaller(options: CallerOptions): CallerSession {
  return {
    database: options.database,
    user: options.user,
    inTransactionBlock: true,
    isOneTransaction: true,
    cursors: options.cursors,
    query: () => Promise.reject(failedTransaction()),
    notice: () => undefined,
    onCommit: () => undefined,
  };
}

async function runQuery(
  driver: Driver,
  options: Place,
  sql: string,
  parameters: readonly (string | null)[] | BoundParameters,
  quiet: boolean,
  front: Front | null = null,
): Promise<QueryResult> {
  if (driver.failed) throw failedTransaction();
  const { charset } = driver;
  const { name, eachSynced } = options;
  // A statement left behind by one that failed would make Parse fail.
  const before = name === '' ? [] : [close('S', name, charset)];
  const after = name === '' ? [] : [close('S', name, charset)];
  const bytes = Buffer.concat([
    ...(front === null ? [] : [front.bytes]),
    ...before,
    parse(name, sql, charset, 'types' in parameters ? parameters.types : []),
    'types' in parameters ? bindAs(name, name, parameters.values, charset) : bind(name, name, parameters, charset),
    describe('P', name, charset),
    execute(name, charset),
    close('P', name, charset),
    ...after,
    eachSynced ? sync : flush,
  ]);
  const reader = new ResultReader(driver, eachSynced, name === '' ? 1 : 3, front);
  driver.quiet = quiet;
  driver.dirty = !eachSynced;
  try {
    await driver.exchange(bytes, reader);
  } finally {
    driver.quiet = false;
  }
  if (reader.error !== null) {
    if (!eachSynced) driver.failed = true;
    else if (name !== '') await forget(driver, name);
    throw reader.error;
  }
  return { fields: reader.fields, rows: reader.rows, tag: reader.tag };
}

/**
 * Asks what belongs behind a statement. With `front` that statement goes out in the same write, and its answers to `front.handler`: when
 * that says it has failed nothing is answered.
 */
export async function ask(driver: Driver, place: Place, question: Question, front: Front | null = null): Promise<void> {
  const { rows } = await runQuery(driver, place, question.sql, [], front === null, front);
  if (front?.failed !== true) question.answered(rows[0] ?? []);
}

/** The error has made the upstream skip the Close: the name must not stay in the client's session. */
async function forget(driver: Driver, name: string): Promise<void> {
  await driver.exchange(Buffer.concat([close('S', name, driver.charset), sync]), {
    disposition: (tag) => (tag === Reply.readyForQuery ? Disposition.collect : Disposition.drop),
    message: () => true,
  });
}

class ResultReader {
  fields: readonly FieldDescription[] = [];
  readonly rows: (string | null)[][] = [];
  tag = '';
  error: UpstreamError | null = null;
  readonly #driver: Driver;
  readonly #synced: boolean;
  #closesLeft: number;
  /** Until its answers are through. */
  #front: Front | null;

  constructor(driver: Driver, synced: boolean, closes: number, front: Front | null) {
    this.#driver = driver;
    this.#synced = synced;
    this.#closesLeft = closes;
    this.#front = front;
  }

  disposition(tag: number): number {
    if (this.#front !== null) return this.#front.handler.disposition(tag);
    switch (tag) {
      case Reply.rowDescription:
      case Reply.dataRow:
      case Reply.commandComplete:
      case Reply.error:
      case Reply.closeComplete:
      case Reply.readyForQuery:
        return Disposition.collect;
      default:
        return Disposition.drop;
    }
  }

  message(tag: number, message: Buffer): boolean {
    const { charset, ledger } = this.#driver;
    if (this.#front !== null) {
      if (!this.#front.handler.message(tag, message)) return false;
      const { failed } = this.#front;
      this.#front = null;
      return failed;
    }
    switch (tag) {
      case Reply.rowDescription:
        this.fields = rowDescriptionFields(message, charset);
        return false;
      case Reply.dataRow:
        this.rows.push(dataRowValues(message, charset));
        return false;
      case Reply.commandComplete:
        this.tag = commandTag(message);
        return false;
      case Reply.error:
        this.error ??= new UpstreamError(errorFields(message, charset));
        return !this.#synced;
      case Reply.closeComplete:
        this.#closesLeft--;
        return !this.#synced && this.#closesLeft === 0;
      default:
        ledger.status = message[5] ?? Status.idle;
        return this.#synced;
    }
  }
}
