/**
 * Copies that fail.
 * Invariant: a failure concerns the versions on that storage, and nothing else. What the origin or the upstream refuses (a value, a permission) errs
 * them; anything else (a connection, a table that has got wider types meanwhile) is not told. Both are tried again with growing pauses; of a copy in pieces what is in stays, unless it was refused.
 */
import type { RelationError, Storage } from '../catalog/model.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { EngineContext } from './context.ts';
import { followEnums } from './enum-labels.ts';
import type { BrokenVersion } from './schema-change.ts';

const [firstPauseMs, longestPauseMs] = [500, 30_000];
/** Of copies that are refused. */
const [firstRetrySeconds, longestRetrySeconds] = [5, 600];

export interface FailureHooks {
  readonly fail: (broken: readonly BrokenVersion[]) => Promise<void>;
  /** The origin's table has wider types than the storage. */
  readonly isOutgrown: (storage: Storage) => Promise<boolean>;
}

export class CopyFailures {
  readonly #engine: EngineContext;
  readonly #hooks: FailureHooks;
  /** In a row, by storage. */
  readonly #interrupted = new Map<number, number>();

  constructor(engine: EngineContext, hooks: FailureHooks) {
    this.#engine = engine;
    this.#hooks = hooks;
  }

  passed(storageId: number): void {
    this.#interrupted.delete(storageId);
  }

  /** Resolves when the copy may be tried again, if it is still wanted: at once when it was aborted. */
  async failed(storage: Storage, error: unknown, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    const { log } = this.#engine;
    log.warn({ storage: storage.id, table: `${storage.originSchema}.${storage.originName}`, err: error }, 'a table could not be copied');
    if (error instanceof PostgresError) {
      if (await followEnums(this.#engine, storage, error)) return;
      if (/^(22|23|42)/.test(error.code) && !(await this.#hooks.isOutgrown(storage))) {
        await this.#engine.exclusively(() => this.#refused(storage, error));
        return;
      }
    }
    const times = this.#interrupted.get(storage.id) ?? 0;
    this.#interrupted.set(storage.id, times + 1);
    await pause(Math.min(firstPauseMs * 2 ** times, longestPauseMs), signal);
  }

  async #refused(storage: Storage, error: PostgresError): Promise<void> {
    const { session, state } = this.#engine;
    // What a resynchronisation was to mend stays as it is, and is not chosen for new versions.
    const failed = storage.resyncs ?? storage.id;
    const message = `${storage.resyncs === null ? 'initial copy' : 'resynchronisation'} failed: ${error.message}`;
    const retry =
      storage.resyncs === null
        ? `now() + least(${firstRetrySeconds} * 2 ^ least(attempts, 20), ${longestRetrySeconds}) * interval '1 second'`
        : 'NULL';
    await session.query(
      `UPDATE millrace.storage
          SET state = 'failed', stale = false, error = jsonb_build_object('message', ${quoteLiteral(message)}), attempts = attempts + 1, retry_at = ${retry}
        WHERE id = ${failed}${storage.resyncs === null ? '' : `; UPDATE millrace.storage SET state = 'dropped' WHERE id = ${storage.id}`}`,
    );
    const { detail } = error.fields;
    const told: RelationError = {
      code: error.code,
      message,
      ...(detail === undefined ? {} : { detail }),
      ...(storage.resyncs === null ? { isRetried: true } : {}),
    };
    await this.#hooks.fail(
      [...state.tables.values()].filter((table) => table.storageId === failed).map(({ id }) => ({ relationId: id, error: told })),
    );
  }
}

/** Ends at once when it is no longer wanted. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener('abort', end);
  });
}
