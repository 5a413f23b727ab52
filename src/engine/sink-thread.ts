/**
 * The thread that delivers what is in the outboxes.
 * Invariant: it shares nothing with epochs but the catalog, so a sink that stands still, or is busy, holds none of them back. It ends with the
 * engine; when it ends by itself the engine goes on, and it is started again.
 */
import { Worker } from 'node:worker_threads';
import type { SinkMessage, SinkThreadConfig } from '../sinks/messages.ts';
import type { EngineContext } from './context.ts';

const restartAfterMs = 1000;

export class SinkThread {
  readonly #engine: EngineContext;
  #worker: Worker | null = null;
  #restart: NodeJS.Timeout | null = null;
  #told = false;
  #stopping = false;

  constructor(engine: EngineContext) {
    this.#engine = engine;
  }

  /** The catalog was read: the thread runs when there is a sink, or a subscription, whose outbox it trims. */
  follow(): void {
    const { sinks, subscriptions } = this.#engine.state;
    if (sinks.size + subscriptions.size > 0 && this.#worker === null && this.#restart === null && !this.#stopping) this.#start();
    this.#tell({ type: 'catalog' });
  }

  /** An epoch has committed changes to outboxes. One message for all of a turn of the event loop. */
  written(): void {
    if (this.#told || this.#worker === null) return;
    this.#told = true;
    setImmediate(() => {
      this.#told = false;
      this.#tell({ type: 'written' });
    });
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    if (this.#restart !== null) clearTimeout(this.#restart);
    const worker = this.#worker;
    if (worker === null) return;
    const ended = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
    this.#tell({ type: 'stop' });
    const patience = setTimeout(() => void worker.terminate(), 5000);
    await ended;
    clearTimeout(patience);
  }

  #tell(message: SinkMessage): void {
    this.#worker?.postMessage(message);
  }

  #start(): void {
    const { config, token, log } = this.#engine;
    const workerData: SinkThreadConfig = { ...config, token: String(token) };
    // Built, the file ends in .js; run by a test from the sources, the built one is taken.
    const file = new URL(import.meta.url.endsWith('.ts') ? '../../dist/sinks/thread.js' : '../sinks/thread.js', import.meta.url);
    // Rows live as long as their page: with room for some pages they are gone before they are looked for.
    const worker = new Worker(file, { workerData, resourceLimits: { maxYoungGenerationSizeMb: 64 } });
    this.#worker = worker;
    worker.on('message', (metrics: Readonly<Record<string, number>>) => Object.assign(this.#engine.metrics, metrics));
    worker.on('error', (error) => log.error({ err: error }, 'the thread of sinks has ended by an error'));
    worker.on('messageerror', (error) => this.#engine.fail(error));
    worker.on('exit', () => {
      this.#worker = null;
      if (this.#stopping) return;
      this.#restart = setTimeout(() => {
        this.#restart = null;
        this.follow();
      }, restartAfterMs);
    });
  }
}
