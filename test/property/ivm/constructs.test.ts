/**
 * Every construct that a view can have, kept over random transactions on all of its relations at once.
 * MILLRACE_IVM_CASES: rounds (default 1); MILLRACE_IVM_SEED: the first seed; MILLRACE_IVM_POSTGRES: 15..18 (default: 15 and 18);
 * MILLRACE_IVM_ONLY: part of the name of a construct; MILLRACE_IVM_WAYS: print what each comes to.
 */
import type pg from 'pg';
import { describe, expect, test } from 'vitest';
import { explainPlan, explainSteps } from '../../../src/ivm/view-plan.ts';
import { type Construct, constructs } from './constructs.ts';
import { LiveDatabase } from './live-database.ts';
import { seeded } from './random.ts';
import { versions, withServer } from './server.ts';
import { createTables, randomTransaction } from './writes.ts';

const rounds = Number(process.env['MILLRACE_IVM_CASES'] ?? 1);
const firstSeed = Number(process.env['MILLRACE_IVM_SEED'] ?? Date.now() % 1_000_000_000);
const only = process.env['MILLRACE_IVM_ONLY'] ?? '';
const epochsPerRound = 5;
const viewsTogether = 12;
const ranks = { algebraic: 0, keyed: 1, full: 2 } as const;

describe.each(versions)('constructs on PostgreSQL %i', (version) => {
  let client: pg.Client;
  withServer(version, (connected) => {
    client = connected;
  });

  async function tryAll(some: readonly Construct[], seed: number): Promise<void> {
    const random = seeded(seed);
    const database = new LiveDatabase(client);
    await database.reset();
    const tables = await createTables(random, database);
    for (const { name, sql, way, exact } of some) {
      const relations = [random.pick(['t_1', 't_2', 't_3']), random.pick(['t_1', 't_2', 't_3']), random.pick(['t_1', 't_2', 't_3'])];
      const query = sql.replace(/\$(\d)/g, (_, n: string) => relations[Number(n) - 1] ?? '');
      const view = await database.createView(name, query, exact !== false).catch((error: unknown) => {
        throw new Error(`${name}: ${String(error)}\n${query}`, { cause: error });
      });
      if (process.env['MILLRACE_IVM_WAYS'] !== undefined)
        console.log(`${name}\n  ${explainPlan(view.plan)}\n  ${explainSteps(view.plan, view.id).lines.join('\n  ')}`);
      if (ranks[view.plan.reason.way] > ranks[way]) throw new Error(`${name} is ${explainPlan(view.plan)}`);
    }
    await database.verify();
    for (let epoch = 0; epoch < epochsPerRound; epoch++) {
      await database.epoch(() => randomTransaction(random, client, tables));
      await database.verify();
    }
    const idle = await database.epoch(async () => {
      for (const { id } of tables) await client.query(`UPDATE millrace_data.s${id} SET c1 = c1, c2 = c2`);
    });
    for (const view of database.views) {
      if (view.exact) expect(idle.has(view.id), `${view.name} was written by a change of nothing`).toBe(false);
    }
  }

  const chosen = constructs.filter(({ name }) => name.includes(only));
  const parts = Array.from({ length: Math.ceil(chosen.length / viewsTogether) }, (_, i) =>
    chosen.slice(i * viewsTogether, (i + 1) * viewsTogether),
  );

  test.each(parts.map((part, i) => [i + 1, part] as const))('part %i', { timeout: 60_000 + rounds * 60_000 }, async (_, part) => {
    const failures: string[] = [];
    for (let round = 0; round < rounds; round++) {
      // Each on its own when one fails, so that all that is wrong is seen.
      const seed = firstSeed + round;
      try {
        await tryAll(part, seed);
      } catch {
        await client.query('ROLLBACK');
        for (const one of part) {
          try {
            await tryAll([one], seed);
          } catch (error) {
            await client.query('ROLLBACK');
            failures.push(`MILLRACE_IVM_SEED=${seed} MILLRACE_IVM_ONLY='${one.name}': ${String(error)}`);
          }
        }
      }
      if (failures.length > 0) break;
    }
    expect(failures.join('\n\n')).toBe('');
  });
});
