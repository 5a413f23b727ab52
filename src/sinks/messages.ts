/** What the engine and the thread of sinks tell each other. */
import type { EngineConfig } from '../config.ts';

/** `workerData` of the thread. */
export interface SinkThreadConfig extends EngineConfig {
  /** Fencing token of the leadership, in decimal: nothing is delivered once the catalog has another. */
  readonly token: string;
}

/** From the engine. */
export type SinkMessage =
  /** Sinks may have been made, altered, dropped. */
  | { readonly type: 'catalog' }
  /** An epoch has committed rows to outboxes. */
  | { readonly type: 'written' }
  /** Finish what is under way and end. */
  | { readonly type: 'stop' };
