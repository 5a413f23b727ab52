/**
 * The 22 queries of TPC-H as views: each equals its query after every epoch, and none is computed as a whole.
 * MILLRACE_TPCH_EPOCHS: epochs (default 4); MILLRACE_IVM_POSTGRES: 15..18; MILLRACE_IVM_WAYS: print what each comes to.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadViewParser } from '../../../src/ivm/source-text.ts';
import { explainPlan, explainSteps } from '../../../src/ivm/view-plan.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { changeTpch, fillTpch, tpchQueries, tpchTables } from '../../support/tpch.ts';
import { LiveDatabase } from './live-database.ts';

const versions = (process.env['MILLRACE_IVM_POSTGRES']?.split(',').map(Number) ?? [15, 18]) as PostgresMajor[];
const epochs = Number(process.env['MILLRACE_TPCH_EPOCHS'] ?? 4);
const size = { suppliers: 20, parts: 60, customers: 50, orders: 250 };

/** Queries whose answer is kept by adding and subtracting alone. */
const algebraic = ['q01', 'q05', 'q06', 'q07', 'q08', 'q09', 'q11', 'q12', 'q13', 'q14', 'q15', 'q17', 'q19'];

describe.each(versions)('TPC-H on PostgreSQL %i', (version) => {
  let server: TestPostgres;
  let client: pg.Client;
  let database: LiveDatabase;
  beforeAll(async () => {
    await loadViewParser();
    server = await startPostgres({ version });
    client = new pg.Client({ connectionString: server.url });
    await client.connect();
    database = new LiveDatabase(client);
    await database.reset();
    for (const { name, columns, key } of tpchTables) {
      await database.createTable(
        name,
        columns.map(([column, type]) => ({ name: column, type })),
        Array.from({ length: key }, (_, i) => i),
      );
    }
    for (const statement of fillTpch(size)) await client.query(statement);
    for (const { id } of database.tables) await client.query(`DELETE FROM millrace_data.d${id}`);
  });
  afterAll(async () => {
    await client?.end();
    await server?.stop();
  });

  test('each query is incremental', { timeout: 120_000 }, async () => {
    for (const [name, sql] of tpchQueries) {
      const { plan, id } = await database.createView(name, sql).catch((error: unknown) => {
        throw new Error(`${name}: ${String(error)}`, { cause: error });
      });
      if (process.env['MILLRACE_IVM_WAYS'] !== undefined)
        console.log(`${name}: ${explainPlan(plan)}\n  ${explainSteps(plan, id).lines.join('\n  ')}`);
      expect([name, plan.reason.way]).toEqual([name, algebraic.includes(name) ? 'algebraic' : 'keyed']);
    }
    await database.verify();
    const empty: string[] = [];
    for (const [name] of tpchQueries) if ((await database.rows(name)).length === 0) empty.push(name);
    expect(empty).toEqual([]);
  });

  test('each equals its query after every epoch', { timeout: 60_000 + epochs * 30_000 }, async () => {
    for (let round = 0; round < epochs; round++) {
      await database.epoch(async () => {
        for (const statement of changeTpch(round, size)) await client.query(statement);
      });
      await database.verify();
    }
  });
});
