/**
 * Millrace's own connection to the catalog of a database, shared by all who need one for a moment.
 * Invariant: what goes over it is committed at once, whatever becomes of the client's transaction.
 */
import type { Client } from 'pg';
import type { ServerAddress } from '../config.ts';
import { connectPg } from '../replication/server-address.ts';

const keptMs = 2000;

interface Shared {
  readonly client: Promise<Client>;
  users: number;
  timer: NodeJS.Timeout | null;
}

export class CatalogClients {
  readonly #upstream: ServerAddress;
  readonly #shared = new Map<string, Shared>();

  constructor(upstream: ServerAddress) {
    this.#upstream = upstream;
  }

  async with<T>(database: string, work: (client: Client) => Promise<T>): Promise<T> {
    const shared = this.#shared.get(database) ?? this.#open(database);
    shared.users++;
    if (shared.timer !== null) clearTimeout(shared.timer);
    shared.timer = null;
    try {
      return await work(await shared.client);
    } finally {
      shared.users--;
      if (shared.users === 0) {
        shared.timer = setTimeout(() => this.#close(database, shared), keptMs);
        shared.timer.unref();
      }
    }
  }

  #open(database: string): Shared {
    const client = connectPg(this.#upstream, { database, applicationName: 'millrace subscriptions' });
    const shared: Shared = { client, users: 0, timer: null };
    this.#shared.set(database, shared);
    client.then(
      (open) => {
        open.on('error', () => this.#forget(database, shared));
        open.on('end', () => this.#forget(database, shared));
      },
      () => this.#forget(database, shared),
    );
    return shared;
  }

  #forget(database: string, shared: Shared): void {
    if (this.#shared.get(database) === shared) this.#shared.delete(database);
  }

  #close(database: string, shared: Shared): void {
    this.#forget(database, shared);
    void shared.client.then((client) => client.end()).catch(() => undefined);
  }
}
