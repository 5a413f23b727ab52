/**
 * The client's own upstream session, as an extended statement sees it (implemented by wire/).
 * Invariant 2 of the design: everything here runs in the caller's transaction and as the caller's role.
 */
import type { ErrorFields, NoticeFields } from '../errors.ts';
import type { ExtendedStatement } from '../sql/ast.ts';

export interface FieldDescription {
  readonly name: string;
  readonly typeOid: number;
  readonly typeModifier: number;
}

export interface QueryResult {
  readonly fields: readonly FieldDescription[];
  /** Text format; null is SQL NULL. */
  readonly rows: readonly (readonly (string | null)[])[];
  readonly tag: string;
}

/** An ErrorResponse of the upstream, with every field kept, to be relayed to the client as it came. */
export class UpstreamError extends Error {
  readonly fields: Readonly<Record<string, string>>;
  /** `fields`: one-letter field code of the protocol -> value (S, V, C, M, D, H, P, ...). */
  constructor(fields: Readonly<Record<string, string>>) {
    super(fields['M'] ?? 'upstream error');
    this.name = 'UpstreamError';
    this.fields = fields;
  }
  get code(): string {
    return this.fields['C'] ?? 'XX000';
  }
}

/** The same about a query that the client gave as an argument: `p` is the place in it and `q` its text, as for texts inside a function. */
export class GivenQueryError extends UpstreamError {}

export interface QueryOptions {
  readonly quiet?: boolean;
  /** The parameters are those the client has bound to the statement that is being carried out: $1 means what it means there. */
  readonly bound?: boolean;
}

export interface CallerSession {
  readonly database: string;
  /** Role the client connected as (session_user). */
  readonly user: string;
  /** True inside BEGIN .. COMMIT, where what was done may still roll back. */
  readonly inTransactionBlock: boolean;
  /** Also outside of a block, what one statement asks is one transaction. */
  readonly isOneTransaction: boolean;
  /**
   * One statement over the client's upstream session. Parameters and results travel in text format.
   * Rejects with UpstreamError; the transaction is then aborted, as in Postgres. Notices of the upstream reach the client by themselves
   * unless `quiet` is set.
   */
  query(sql: string, parameters?: readonly (string | null)[], options?: QueryOptions): Promise<QueryResult>;
  /** Sends a NoticeResponse to the client, in order with everything else. */
  notice(fields: NoticeFields): void;
  /**
   * To be run once the current transaction has committed and before the client hears ReadyForQuery; dropped when it rolls back.
   * May use `query`. What it throws reaches the client as the error of the statement when that statement was its own transaction,
   * and as a WARNING after an explicit COMMIT.
   */
  onCommit(task: (session: CallerSession) => Promise<void>): void;
  /** Cursors over subscriptions that this client has declared in its transaction, by name; they are closed when that ends. */
  readonly cursors: Map<string, Feed>;
}

/** A subscription that is read piece by piece. */
export interface Feed {
  readonly fields: readonly FieldDescription[];
  /**
   * At most `max` rows that are there; when none are, those that come within `patienceMs` (null: without end). `ended`: none will come any more.
   * The session of each call is the one in which the feed was opened, in the same transaction if that was in a block.
   */
  take(session: CallerSession, max: number, patienceMs: number | null): Promise<FeedPage>;
  /** `session` null: it has nothing open there any more. Never rejects. */
  close(session: CallerSession | null): Promise<void>;
}

export interface FeedPage {
  readonly rows: readonly (readonly (string | null)[])[];
  readonly ended: boolean;
}

/** How rows are written behind COPY. */
export type CopyFormat = CopyLines | { readonly kind: 'binary' };

export interface CopyLines {
  readonly kind: 'lines';
  readonly header: string | null;
  line(row: readonly (string | null)[]): string;
}

/** What is asked of the upstream right behind a statement, in the same write. */
export interface Question {
  readonly sql: string;
  /** Gets the first row. */
  readonly answered: (row: readonly (string | null)[]) => void;
}

export type StatementResult =
  /** CommandComplete with this tag ("CREATE SOURCE"). */
  | { readonly kind: 'done'; readonly tag: string }
  | {
      readonly kind: 'rows';
      readonly fields: readonly FieldDescription[];
      readonly rows: readonly (readonly (string | null)[])[];
      readonly tag: string;
    }
  /** Rows as they come, maybe without end. Whoever gets it reads it or calls `return` of its iterator. `copy`: as COPY data. */
  | {
      readonly kind: 'stream';
      readonly fields: readonly FieldDescription[];
      readonly pages: AsyncIterable<readonly (readonly (string | null)[])[]>;
      readonly copy: CopyFormat | null;
      readonly tag: (rows: number) => string;
      /** Asked again and again while the client does not take what it was sent: rejects when it has cancelled. */
      readonly meanwhile: () => Promise<void>;
      /** Nobody will read on, and the session is not to be used for cleaning up. */
      readonly abandon: () => void;
    }
  /** Millrace has done its part; the upstream answers. `text` is what it is to run; when that has succeeded `behind` is asked. */
  | { readonly kind: 'forward'; readonly text: string; readonly behind: Question };

/** What wire/ needs of statements/ to serve extended SQL. One per process. */
export interface StatementRunner {
  /**
   * Whether a statement that may or may not be Millrace's (see the candidates in sql/ast.ts) is. Asked in the caller's session, without side effects.
   * Statements that are always extended answer true without a query. `ahead`: asked before statements in front of it have run, which may
   * change the answer: true when it can become true.
   */
  claims(statement: ExtendedStatement, text: string, session: CallerSession, ahead?: boolean): Promise<boolean>;
  /** The columns a statement will return, null when it returns none. For Describe; asked in the caller's session, without side effects. */
  describe(
    statement: ExtendedStatement,
    session: CallerSession,
  ): Promise<readonly FieldDescription[] | null> | readonly FieldDescription[] | null;
  /**
   * The text to be prepared upstream for a statement that the upstream answers once Millrace has done its part (`run` then gives
   * 'forward'), null for all others. Asked when `claims` has said yes.
   */
  upstreamText(statement: ExtendedStatement, text: string): string | null;
  /** Carries a statement out. Rejects with MillraceError or UpstreamError. `text` is the statement as typed, for SHOW CREATE and logs. */
  run(statement: ExtendedStatement, text: string, session: CallerSession): Promise<StatementResult>;
}

export type { ErrorFields, NoticeFields };
