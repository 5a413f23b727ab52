/**
 * The view equals its query: random views over random tables, random transactions, compared after every epoch. One file a server, so that
 * they run at the same time.
 * MILLRACE_IVM_CASES: schemas tried (default 24); MILLRACE_IVM_SEED: the first seed; MILLRACE_IVM_POSTGRES: 15..18 (default: 15 and 18).
 */
import type pg from 'pg';
import { describe, expect, test } from 'vitest';
import { casesOr, tryCases, type Ways, waysOf } from './cases.ts';
import { LiveDatabase } from './live-database.ts';
import { randomQuery } from './queries.ts';
import { type Random, seeded } from './random.ts';
import { versions, withServer } from './server.ts';
import { createTables, randomTransaction } from './writes.ts';

const cases = casesOr(24);
const viewsPerCase = 12;
const epochsPerCase = 5;

async function createViews(random: Random, database: LiveDatabase): Promise<void> {
  const relations = ['t_1', 't_2', 't_3'];
  await database.createPlainView('plain', `SELECT a, b, c, d, "Weird ""col", f, u FROM t_1 WHERE a IS NOT NULL`);
  relations.push('plain');
  for (let i = 0; i < viewsPerCase; i++) {
    const { sql, exact } = randomQuery(random, relations);
    await database.createView(`v${i + 1}`, sql, exact).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${sql}`, { cause: error });
    });
  }
  // Views over views: one that filters, and one with hidden state below.
  await database.createView('base', `SELECT a, b, c, d, "Weird ""col", f, u FROM t_2 WHERE a > 0`);
  await database.createView(
    'state',
    `SELECT a, avg(b) AS b, max(c) AS c, min(d) AS d, count(*) AS "Weird ""col", NULL::float8 AS f, sum(b) AS u FROM ${random.pick(relations)} GROUP BY a`,
  );
  for (const i of [1, 2, 3]) {
    const { sql, exact } = randomQuery(random, ['base', 'state', 't_1']);
    await database.createView(`over${i}`, sql, exact).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${sql}`, { cause: error });
    });
  }
}

/** Epochs that change nothing write nothing; and, where no hidden state can differ, neither do epochs without effect on a view. */
async function tryCase(seed: number, database: LiveDatabase): Promise<Ways> {
  const random = seeded(seed);
  await database.reset();
  const tables = await createTables(random, database);
  await createViews(random, database);
  await database.verify();
  for (let epoch = 0; epoch < epochsPerCase; epoch++) {
    const before = new Map<number, string>();
    for (const view of database.views) before.set(view.id, (await database.rows(view.name)).join('\n'));
    const changed = await database.epoch(() => randomTransaction(random, database.client, tables));
    await database.verify();
    for (const view of database.views) {
      // Others have columns nobody sees, which may have changed.
      if (view.plan.body.kind !== 'whole' || !changed.has(view.id)) continue;
      const after = (await database.rows(view.name)).join('\n');
      if (after === before.get(view.id)) throw new Error(`${view.name} was written without need\n${view.query}`);
    }
  }
  const idle = await database.epoch(async () => {
    for (const { id } of tables) await database.client.query(`UPDATE millrace_data.s${id} SET c1 = c1, c2 = c2`);
  });
  for (const view of database.views) {
    // Which of several equal values stands for a group may change at any time.
    if (view.exact) expect(idle.has(view.id), `${view.name} was written by a change of nothing: ${view.query}`).toBe(false);
  }
  return waysOf(database);
}

/** The property on these servers, those of them that are asked for. */
export function viewsEqualTheirQueries(servers: (version: number) => boolean): void {
  const asked = versions.filter(servers);
  if (asked.length === 0) test.skip('not asked for', () => undefined);
  else describeViews(asked);
}

function describeViews(asked: typeof versions): void {
  describe.each(asked)('views on PostgreSQL %i', (version) => {
    let client: pg.Client;
    withServer(version, (connected) => {
      client = connected;
    });

    test(`equal their queries after every epoch (${cases} schemas)`, { timeout: 60_000 + cases * 60_000 }, async () => {
      const database = new LiveDatabase(client);
      const ways = await tryCases({ client, version }, cases, (seed) => tryCase(seed, database));
      const all = [...ways.values()].reduce((sum, count) => sum + count, 0);
      console.log(
        `PostgreSQL ${version}: ${all} views, each compared ${epochsPerCase + 1} times; by way: ${JSON.stringify(Object.fromEntries(ways))}`,
      );
    });
  });
}
