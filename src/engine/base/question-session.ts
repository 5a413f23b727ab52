/**
 * The session for markers and for questions about tables, beside the one that runs epochs.
 * Invariant: questions are asked one after the other; when the session is gone the stream is taken for lost.
 */
import type { Client } from 'pg';
import type { EngineConfig } from '../../config.ts';
import { openOrigin } from '../../replication/origin.ts';
import { StreamLostError } from './runner.ts';

export class QuestionSession {
  readonly #config: EngineConfig;
  readonly #broken: (error: Error) => void;
  #client: Client | null = null;
  #asked: Promise<unknown> = Promise.resolve();

  /** `broken`: it was closed by the other side. */
  constructor(config: EngineConfig, broken: (error: Error) => void) {
    this.#config = config;
    this.#broken = broken;
  }

  get isOpen(): boolean {
    return this.#client !== null;
  }

  async open(): Promise<Client> {
    const { upstream, database } = this.#config;
    await this.close();
    const client = await openOrigin(upstream, { database, applicationName: 'millrace markers' });
    this.#client = client;
    client.on('error', (error) => {
      if (this.#client !== client) return;
      this.#client = null;
      this.#broken(error);
    });
    return client;
  }

  async close(): Promise<void> {
    await this.#client?.end().catch(() => undefined);
  }

  ask<T>(work: (client: Client) => Promise<T>): Promise<T> {
    const asked = this.#asked.then(async () => {
      const client = this.#client;
      if (client === null) throw new StreamLostError('the session for base tables is closed');
      return await work(client);
    });
    this.#asked = asked.catch(() => undefined);
    return asked;
  }
}
