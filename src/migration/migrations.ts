/** All migrations of a database. Invariant: each that is not over has one runner. */
import type { Migration } from './model.ts';
import { MigrationRunner, type RunnerServices } from './runner.ts';

export class Migrations {
  readonly #services: RunnerServices;
  readonly #runners = new Map<number, MigrationRunner>();

  constructor(services: RunnerServices) {
    this.#services = services;
  }

  /** What the catalog has now. */
  follow(present: readonly Migration[]): void {
    for (const migration of present) {
      const runner = this.#runners.get(migration.id);
      if (runner === undefined) this.#runners.set(migration.id, new MigrationRunner(this.#services, migration));
      else runner.update(migration);
    }
    for (const [id, runner] of this.#runners) {
      if (present.some((migration) => migration.id === id)) continue;
      this.#runners.delete(id);
      void runner.stop();
    }
  }

  async stop(): Promise<void> {
    await Promise.all([...this.#runners.values()].map((runner) => runner.stop()));
    this.#runners.clear();
  }
}
