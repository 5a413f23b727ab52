/** Queries that compare columns with the time: rows leave and enter by themselves. */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { sortedRows } from '../../support/streams.ts';

describe.each([15, 18] as const)('on PostgreSQL %i', (version) => {
  let upstream: TestPostgres;
  let millrace: TestMillrace;
  let client: pg.Client;

  beforeAll(async () => {
    upstream = await startPostgres({ version, settings: { wal_level: 'logical' } });
    millrace = await startMillrace({ upstream: upstream.address });
    client = new pg.Client({ connectionString: millrace.url() });
    await client.connect();
    await client.query('CREATE TABLE event (id integer PRIMARY KEY, kind text, at timestamptz, day date)');
  }, 120_000);

  afterAll(async () => {
    await client?.end();
    await millrace?.stop();
    await upstream?.stop();
  });

  const refreshes = async (name: string): Promise<number> =>
    (
      await client.query(
        "SELECT count(*)::int AS n FROM pgtrickle.pgt_refresh_history JOIN pgtrickle.pgt_stream_tables USING (pgt_id) WHERE pgt_name = $1 AND action <> 'NO_DATA'",
        [name],
      )
    ).rows[0]?.n;

  test('it changes when rows age, with nothing written, and rests between', async () => {
    const queries = {
      recent: "SELECT kind, count(*) AS n FROM event WHERE at > now() - interval '2 seconds' GROUP BY kind",
      coming: "SELECT id FROM event WHERE at + interval '3 seconds' <= CURRENT_TIMESTAMP",
      young:
        "SELECT e.id, f.id AS other FROM event e JOIN event f USING (kind) WHERE now() - e.at < interval '2.5 seconds' AND f.at < now()",
      marked: "SELECT id, CASE WHEN at > now() - interval '1.5 seconds' THEN 'new' ELSE 'old' END AS age FROM event",
    };
    for (const [name, query] of Object.entries(queries)) {
      await client.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$)`);
      expect((await client.query('SELECT * FROM pgtrickle.explain_refresh_mode($1)', [name])).rows[0]).toMatchObject({
        effective_mode: 'DIFFERENTIAL',
      });
    }
    await client.query(
      "INSERT INTO event SELECT g, 'k' || g % 2, now() + make_interval(secs => g - 2), current_date FROM generate_series(0, 4) g",
    );
    const seen = new Map(Object.keys(queries).map((name) => [name, new Set<string>()]));
    for (const end = Date.now() + 8000; Date.now() < end; await sleep(100)) {
      for (const [name, states] of seen) states.add(JSON.stringify(await sortedRows(client, `SELECT * FROM ${name}`)));
    }
    const counts = new Map<string, number>();
    for (const [name, query] of Object.entries(queries)) {
      expect({ name, states: seen.get(name)?.size }).toEqual({ name, states: expect.toSatisfy((states: number) => states > 3) });
      await expect.poll(() => sortedRows(client, `SELECT * FROM ${name}`), { timeout: 5000 }).toEqual(await sortedRows(client, query));
      counts.set(name, await refreshes(name));
    }
    await sleep(2500);
    for (const [name, count] of counts) expect({ name, refreshes: await refreshes(name) }).toEqual({ name, refreshes: count });
    for (const name of Object.keys(queries)) await client.query(`SELECT pgtrickle.drop_stream_table('${name}')`);
  });

  test('with a schedule it is computed by that; what does more with the time than to compare it is FULL', async () => {
    await client.query('TRUNCATE event');
    await client.query("INSERT INTO event VALUES (1, 'a', now(), current_date)");
    await client.query(
      "SELECT pgtrickle.create_stream_table('slow', $$SELECT id FROM event WHERE at > now() - interval '1 second'$$, '2s')",
    );
    await client.query(
      "SELECT pgtrickle.create_stream_table('ages', $$SELECT id, date_trunc('second', now() - at) AS age FROM event$$, '1s')",
    );
    await client.query(
      "SELECT pgtrickle.create_stream_table('today', $$SELECT id FROM event WHERE day >= CURRENT_DATE - 1 AND at < 'infinity'$$)",
    );
    await expect.poll(() => sortedRows(client, 'SELECT * FROM slow'), { timeout: 8000 }).toEqual([]);
    const modes = await client.query('SELECT pgt_name, effective_refresh_mode FROM pgtrickle.pgt_stream_tables ORDER BY 1');
    expect(modes.rows.map((row) => Object.values(row))).toEqual([
      ['ages', 'FULL'],
      ['slow', 'DIFFERENTIAL'],
      ['today', 'DIFFERENTIAL'],
    ]);
    expect(await sortedRows(client, 'SELECT * FROM today')).toHaveLength(1);
    await client.query("INSERT INTO event VALUES (2, 'a', 'infinity', current_date), (3, 'b', now(), current_date)");
    await expect.poll(() => sortedRows(client, 'SELECT * FROM today'), { timeout: 8000 }).toHaveLength(2);
  });
});
