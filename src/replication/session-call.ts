/** A call of a session that waits for its reply. Invariant: it is settled once, when its ReadyForQuery or the end of the connection comes. */
import type { Column } from './reply-parts.ts';
import type { FramesHandler, StatementResult } from './session-contract.ts';

export type Mode = 'query' | 'execute' | 'copyIn' | 'copyOut' | 'copyBoth';

/** A statement the server has, or will have when the Parse sent for it succeeds. */
export interface Prepared {
  readonly sql: string;
  created: boolean;
}

/** A call that waits for its ReadyForQuery. */
export interface Call {
  readonly mode: Mode;
  readonly results: StatementResult[];
  rows: (string | null)[][];
  fields: readonly Column[];
  error: Error | undefined;
  /** Statements parsed in this call, in order; `parsed` of them were confirmed. */
  readonly prepares: readonly { readonly name: string; readonly statement: Prepared }[];
  parsed: number;
  readonly onFrames?: FramesHandler;
  readonly onPayload?: (buffer: Buffer, start: number, end: number) => void;
  readonly onStarted?: () => void;
  readonly settle: (call: Call) => void;
}
