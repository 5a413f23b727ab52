/**
 * What the engine does for subscriptions: their relations get outboxes, and time goes on for them.
 * Invariant: a subscription has `cut_ts` only when the outbox of its relation holds every change after that epoch; while somebody reads one, epochs
 * are never further apart than about a second, so that whoever waits for a timestamp sees it pass.
 */
import { PostgresError } from '../replication/postgres-error.ts';
import type { EngineContext } from './context.ts';
import { Epoch } from './epoch.ts';
import { keepWhole, outboxDdl } from './outbox.ts';

export class Subscriptions {
  readonly #engine: EngineContext;
  readonly #reload: () => Promise<void>;
  #cutting = false;
  #ticking = false;

  constructor(engine: EngineContext, reload: () => Promise<void>) {
    this.#engine = engine;
    this.#reload = reload;
  }

  /** Sees to those that are new. */
  run(): void {
    if (this.#cutting || this.#waiting().length === 0) return;
    this.#cutting = true;
    this.#engine
      .exclusively(() => this.#cut())
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        this.#cutting = false;
      });
  }

  /** An epoch without changes, if there was none for a while and somebody waits for time to go on. */
  tick(): void {
    if (this.#ticking || ![...this.#engine.state.subscriptions.values()].some(({ isRead }) => isRead)) return;
    this.#ticking = true;
    this.#engine
      .exclusively(async () => {
        const [idle] = await this.#engine.session.query(
          "SELECT clock_timestamp() - committed_at > interval '900 milliseconds' FROM millrace.epoch",
        );
        if (idle?.rows[0]?.[0] === 't') await (await Epoch.begin(this.#engine)).commit(new Map());
      })
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        this.#ticking = false;
      });
  }

  /** Those that wait for the outbox of a relation that is ready. */
  #waiting(): { readonly id: number; readonly relationId: number }[] {
    const { subscriptions, tables, views } = this.#engine.state;
    return [...subscriptions.values()].filter(
      ({ cutTs, relationId }) => cutTs === null && (tables.get(relationId) ?? views.get(relationId))?.state === 'ready',
    );
  }

  async #cut(): Promise<void> {
    const { state } = this.#engine;
    const waiting = this.#waiting();
    if (waiting.length === 0) return;
    const missing = new Set(waiting.map(({ relationId }) => relationId).filter((id) => !state.outboxes.has(id)));
    try {
      const epoch = await Epoch.begin(this.#engine);
      epoch.send([...missing].flatMap((id) => outboxDdl(state, id)));
      const ids = waiting.map(({ id }) => id).join(', ');
      epoch.send([keepWhole(waiting.map(({ relationId }) => relationId))]);
      epoch.send([`UPDATE millrace.subscription s SET cut_ts = e.ts FROM millrace.epoch e WHERE s.id IN (${ids}) AND s.cut_ts IS NULL`]);
      await epoch.commit(new Map());
    } catch (error) {
      if (!(error instanceof PostgresError)) throw error;
      await this.#engine.session.query('ROLLBACK').catch(() => undefined);
      this.#engine.log.warn({ err: error }, 'subscriptions could not be begun; it is tried again');
      return;
    }
    await this.#reload();
    this.#engine.outboxed();
  }
}
