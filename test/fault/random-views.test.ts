/**
 * Random queries as stream tables over ordinary tables, written to by several sessions at once, while the engine is killed at random instants:
 * when it is quiet each stream table is its query, and none was computed anew because changes had been missed.
 * MILLRACE_KILL_ROUNDS: rounds (default 3); MILLRACE_IVM_SEED: the seed of queries and writes.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { quoteIdentifier } from '../../src/sql/quote.ts';
import { type RandomQuery, randomQuery } from '../property/ivm/queries.ts';
import { seeded } from '../property/ivm/random.ts';
import { columnNames, columnTypes, insertRows, randomTransaction, type WritableTable } from '../property/ivm/writes.ts';
import { startEngine, type TestEngine } from '../support/engine.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { createStream, installCatalog, streamReady } from '../support/streams.ts';

const rounds = Number(process.env['MILLRACE_KILL_ROUNDS'] ?? 3);
const seed = Number(process.env['MILLRACE_IVM_SEED'] ?? Date.now() % 1_000_000_000);
const queries = 30;
const writers = 4;

const tables: readonly WritableTable[] = [true, false, true].map((keyed, i) => ({
  name: `public.t_${i + 1}`,
  columns: columnNames.map(quoteIdentifier),
  key: keyed ? 'id' : null,
  identity: keyed ? 'id' : null,
}));

describe.each([
  [18, 'logical'],
  [15, 'replica'],
] as const)('on PostgreSQL %i with wal_level %s', (version, level) => {
  let upstream: TestPostgres;
  let client: pg.Client;
  let engine: TestEngine;
  const views = new Map<string, RandomQuery>();

  beforeAll(async () => {
    upstream = await startPostgres({ version, settings: { wal_level: level, max_connections: '60', deadlock_timeout: '10ms' } });
    client = new pg.Client({ connectionString: upstream.url });
    await client.connect();
    await installCatalog(client);
    const random = seeded(seed);
    for (const table of tables) {
      const columns = table.columns.map((name, i) => `${name} ${columnTypes[i]}`);
      await client.query(
        `CREATE TABLE ${table.name} (${[...columns, ...(table.key === null ? [] : ['id integer PRIMARY KEY'])].join(', ')})`,
      );
      await client.query(insertRows(random, table, 12));
    }
    engine = startEngine(upstream.address);
    const ids: number[] = [];
    for (let i = 1; i <= queries; i++) {
      const query = randomQuery(random, ['t_1', 't_2', 't_3']);
      views.set(`v${i}`, query);
      ids.push(await createStream(client, `v${i}`, query.sql));
    }
    for (const id of ids) await streamReady(client, id);
  }, 180_000);

  afterAll(async () => {
    await engine?.stop();
    await client?.end();
    await upstream?.stop();
  });

  async function writer(number: number, going: () => boolean): Promise<number> {
    const random = seeded(seed + number);
    const own = new pg.Client({ connectionString: upstream.url });
    await own.connect();
    let committed = 0;
    try {
      while (going()) {
        await own.query('BEGIN');
        try {
          await randomTransaction(random, own, tables);
          // Joins of five tables with few different values: they must not grow.
          for (const { name } of tables)
            await own.query(`DELETE FROM ${name} WHERE ctid = ANY (ARRAY(SELECT ctid FROM ${name} OFFSET 12))`);
          if (random.chance(0.2)) await sleep(random.int(20));
          await own.query(random.chance(0.9) ? 'COMMIT' : 'ROLLBACK');
          committed++;
        } catch (error) {
          // Writers do not keep to an order.
          if ((error as { code?: string }).code !== '40P01') throw error;
          await own.query('ROLLBACK');
        }
        await sleep(random.int(10));
      }
    } finally {
      await own.end();
    }
    return committed;
  }

  /** Rows that one side alone has. */
  async function differences(): Promise<string[]> {
    const found: string[] = [];
    for (const [name, { sql, exact }] of views) {
      const image = exact ? 'x.*::text' : 'x.*';
      const result = await client.query(`
        (SELECT 'missing' AS side, t.*::text AS line FROM (SELECT ${image} FROM (${sql}) x EXCEPT ALL SELECT ${image} FROM ${name} x) t LIMIT 3)
        UNION ALL
        (SELECT 'surplus', t.*::text FROM (SELECT ${image} FROM ${name} x EXCEPT ALL SELECT ${image} FROM (${sql}) x) t LIMIT 3)`);
      if (result.rows.length > 0) found.push(`${name}: ${JSON.stringify(result.rows)}\n${sql}`);
    }
    return found;
  }

  test(`${queries} random queries follow their tables through kills (seed ${seed}, ${rounds} rounds)`, {
    timeout: 120_000 + rounds * 180_000,
  }, async () => {
    let transactions = 0;
    for (let round = 0; round < rounds; round++) {
      let going = true;
      const working = Promise.all(Array.from({ length: writers }, (_, i) => writer(100 * round + i + 1, () => going)));
      working.catch(() => undefined);
      for (let kills = 0; kills < 3; kills++) {
        await sleep(200 + Math.random() * 800);
        await engine.restart();
      }
      await sleep(Math.random() * 500);
      going = false;
      transactions += (await working).reduce((sum, count) => sum + count, 0);
      let wrong = await differences();
      for (const end = performance.now() + 150_000; wrong.length > 0 && performance.now() < end; wrong = await differences())
        await sleep(50);
      expect(wrong.join('\n\n'), `MILLRACE_IVM_SEED=${seed}`).toBe('');
    }
    expect(transactions).toBeGreaterThan(rounds * writers);
    const missed = await client.query(
      `SELECT reason FROM millrace.refresh_history h WHERE action = 'FULL' AND reason !~ '^(cost:|time$|changes could not be applied)'
        AND EXISTS (SELECT FROM millrace.live_view v WHERE v.relation_id = h.relation_id AND v.plan #>> '{reason,way}' <> 'full')`,
    );
    expect(missed.rows).toEqual([]);
    const actions = await client.query('SELECT action, count(*) AS n FROM millrace.refresh_history GROUP BY action ORDER BY action');
    console.log(`${transactions} transactions, refreshes: ${actions.rows.map(({ action, n }) => `${n} ${action}`).join(', ')}`);
  });
});
