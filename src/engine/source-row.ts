/** A source as the catalog has it. */
import type { ServerAddress } from '../config.ts';

export interface SourceRow {
  readonly id: number;
  readonly name: string;
  readonly publication: string;
  readonly slot: string;
  readonly status: string;
  readonly systemIdentifier: string | null;
  /** Of the origin's WAL, when last seen. */
  readonly timeline: number | null;
  /** What the stream has lost is made good without being asked. */
  readonly autoResync: boolean;
  readonly resyncRequested: boolean;
  /** Changes whenever the connection or one of its secrets does. */
  readonly addressKey: string;
  /** Null when it cannot be opened (see addressProblem). */
  readonly address: ServerAddress | null;
  readonly addressProblem: string | null;
}
