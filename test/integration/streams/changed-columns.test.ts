/**
 * What of the changes of ordinary tables reaches which stream table: columns that it does not use are no concern of it, and what it has
 * not taken yet is kept for it, once for all.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startEngine, type TestEngine } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { createStream, followsQuery, installCatalog, refreshStream, sortedRows, streamReady, streamRow } from '../../support/streams.ts';

describe.each([
  [15, 'logical'],
  [18, 'logical'],
  [18, 'replica'],
] as const)('on PostgreSQL %i with wal_level %s', (version, level) => {
  let upstream: TestPostgres;
  let client: pg.Client;
  let engine: TestEngine;

  beforeAll(async () => {
    upstream = await startPostgres({ version, settings: { wal_level: level } });
    client = new pg.Client({ connectionString: upstream.url });
    await client.connect();
    await installCatalog(client);
    engine = startEngine(upstream.address);
  });

  afterAll(async () => {
    await engine?.stop();
    await client?.end();
    await upstream?.stop();
  });

  /** A stream table that is refreshed when it is told. */
  async function told(name: string, query: string): Promise<number> {
    const id = await createStream(client, name, query, { schedule: '1h' });
    await streamReady(client, id);
    return id;
  }

  /** The last refresh, after one more. */
  async function refreshed(id: number): Promise<{ readonly action: string; readonly rows: number }> {
    await refreshStream(client, id);
    const found = await client.query<{ action: string; rows: string }>(
      'SELECT action, delta_rows AS rows FROM millrace.refresh_history WHERE relation_id = $1 ORDER BY refresh_id DESC LIMIT 1',
      [id],
    );
    return { action: found.rows[0]?.action ?? '', rows: Number(found.rows[0]?.rows) };
  }

  const same = async (name: string, query: string): Promise<void> =>
    expect(await sortedRows(client, `SELECT * FROM ${name}`)).toEqual(await sortedRows(client, query));

  const count = async (from: string, what = '*'): Promise<number> =>
    Number((await client.query(`SELECT count(${what}) AS n FROM ${from}`)).rows[0]?.n);

  const baseOf = async (table: string): Promise<number> =>
    Number(
      (await client.query('SELECT relation_id FROM millrace.base_table WHERE table_oid = $1::regclass', [table])).rows[0]?.relation_id,
    );

  const columnsOf = async (table: string): Promise<string[]> =>
    (
      await client.query(`SELECT attname FROM pg_attribute WHERE attrelid = '${table}'::regclass AND attnum > 0 AND NOT attisdropped`)
    ).rows.map((row: { attname: string }) => row.attname);

  test.skipIf(level === 'replica')('an update of columns that a stream table does not use gives it nothing to do', async () => {
    await client.query(`CREATE TABLE item (id integer PRIMARY KEY, price integer, note text, extra text);
      INSERT INTO item SELECT g, g, 'n', 'e' FROM generate_series(1, 20) g`);
    const prices = 'SELECT id, price FROM item WHERE price > 3';
    const notes = 'SELECT note, count(*) AS n FROM item GROUP BY note';
    const total = 'SELECT count(*) AS n FROM item';
    const [byPrice, byNote, all] = [await told('prices', prices), await told('notes', notes), await told('total', total)];
    const log = `millrace_data.w${await baseOf('item')}`;
    // Nobody uses it, so it is not even read.
    expect(await columnsOf(log)).toEqual(['e', 'w', 'm', 'c1', 'c2', 'c3']);
    await client.query("UPDATE item SET extra = 'other'");
    for (const id of [byPrice, byNote, all]) expect(await refreshed(id)).toEqual({ action: 'NO_DATA', rows: 0 });
    await client.query("UPDATE item SET note = 'other' WHERE id < 6; UPDATE item SET price = price WHERE id < 6");
    expect(await refreshed(byPrice)).toEqual({ action: 'NO_DATA', rows: 0 });
    // It waits for the one that uses the column.
    expect(await count(log)).toBe(10);
    expect(await refreshed(all)).toEqual({ action: 'NO_DATA', rows: 0 });
    expect(await refreshed(byNote)).toEqual({ action: 'DIFFERENTIAL', rows: 10 });
    await client.query('DELETE FROM item WHERE id = 7; UPDATE item SET price = 0 WHERE id = 8; UPDATE item SET id = 100 WHERE id = 9');
    // Its key is used wherever there is one.
    expect(await refreshed(all)).toEqual({ action: 'DIFFERENTIAL', rows: 3 });
    expect(await refreshed(byPrice)).toEqual({ action: 'DIFFERENTIAL', rows: 5 });
    expect(await refreshed(byNote)).toEqual({ action: 'DIFFERENTIAL', rows: 3 });
    await same('prices', prices);
    await same('notes', notes);
    await same('total', total);
    // All of them have taken everything.
    await expect.poll(() => count(log), { timeout: 10_000 }).toBe(0);
  });

  test('NULLs, values left out of the WAL, keys and generated columns that change', async () => {
    await client.query(`CREATE TABLE doc (id integer PRIMARY KEY, kind integer, body text, size integer GENERATED ALWAYS AS (length(body)) STORED, other integer);
      ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
      INSERT INTO doc SELECT g, CASE WHEN g % 2 = 0 THEN g END, repeat(chr(96 + g), 5000) FROM generate_series(1, 9) g`);
    const queries = {
      bodies: 'SELECT id, body FROM doc',
      kinds: 'SELECT kind, count(*) AS n FROM doc GROUP BY kind',
      sizes: 'SELECT id, size FROM doc WHERE size > 1',
    };
    for (const [name, query] of Object.entries(queries)) await streamReady(client, await createStream(client, name, query));
    for (const change of [
      'UPDATE doc SET kind = NULL WHERE id = 1',
      'UPDATE doc SET kind = NULL WHERE id = 2',
      'UPDATE doc SET kind = 7 WHERE id = 3',
      'UPDATE doc SET id = id + 100, other = 1',
      "UPDATE doc SET body = 'short' WHERE id = 104",
      'UPDATE doc SET body = NULL WHERE id = 105',
      "UPDATE doc SET body = repeat('z', 5000), kind = 1 WHERE id = 105",
      'DELETE FROM doc WHERE id = 106',
    ]) {
      await client.query(change);
      for (const [name, query] of Object.entries(queries)) await followsQuery(client, name, query);
    }
  });

  test('columns beyond those that have a bit of their own', async () => {
    const columns = Array.from({ length: 70 }, (_, i) => `f${i} integer DEFAULT 0`).join(', ');
    await client.query(
      `CREATE TABLE broad (id integer PRIMARY KEY, ${columns}); INSERT INTO broad (id) SELECT g FROM generate_series(1, 10) g`,
    );
    const [near, far] = ['SELECT id, f3, f40 FROM broad', 'SELECT f68, count(*) AS n FROM broad GROUP BY f68'];
    await streamReady(client, await createStream(client, 'near', near));
    await streamReady(client, await createStream(client, 'far', far));
    for (const column of ['f3', 'f40', 'f60', 'f61', 'f68']) {
      await client.query(`UPDATE broad SET ${column} = id WHERE id % 2 = 0`);
      await followsQuery(client, 'near', near);
      await followsQuery(client, 'far', far);
    }
  });

  test.skipIf(level === 'replica')('rows move between partitions', async () => {
    await client.query(`CREATE TABLE part (id integer, region integer, v integer, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
      CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1); CREATE TABLE part_2 (note text, v integer, region integer NOT NULL, id integer NOT NULL);
      ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2); INSERT INTO part SELECT g, 1 + g % 2, g, 'n' FROM generate_series(1, 10) g`);
    const query = 'SELECT region, sum(v) AS total FROM part GROUP BY region';
    const id = await told('regions', query);
    await client.query("UPDATE part SET note = 'm'");
    expect(await refreshed(id)).toEqual({ action: 'NO_DATA', rows: 0 });
    await client.query('UPDATE part SET region = 3 - region WHERE id < 4; UPDATE part SET v = v + 1 WHERE id = 9');
    expect(await refreshed(id)).toMatchObject({ action: 'DIFFERENTIAL' });
    await same('regions', query);
  });

  test('a stream table made later uses a column that was not captured before', async () => {
    await client.query(
      'CREATE TABLE grows (id integer PRIMARY KEY, a integer, b integer, c text COLLATE "C"); INSERT INTO grows VALUES (1, 1, 1, $$x$$)',
    );
    const [first, second] = ['SELECT sum(a) AS s FROM grows', 'SELECT c, sum(b) AS s FROM grows GROUP BY c'];
    const early = await told('early', first);
    await client.query('INSERT INTO grows VALUES (2, 2, 2, $$y$$); UPDATE grows SET b = 5');
    const late = await told('late', second);
    await client.query('INSERT INTO grows VALUES (3, 3, 3, $$x$$); UPDATE grows SET b = b + 1, c = $$z$$ WHERE id = 2');
    expect((await refreshed(late)).action).toBe('DIFFERENTIAL');
    expect((await refreshed(early)).action).toBe('DIFFERENTIAL');
    await same('early', first);
    await same('late', second);
  });

  test('two schedules and one that is paused for long: each takes what it has not had, whatever becomes of the engine', async () => {
    await client.query('CREATE TABLE t (id integer PRIMARY KEY, g integer, v integer); CREATE TABLE u (g integer PRIMARY KEY, name text)');
    await client.query(
      "INSERT INTO t SELECT i, i % 5, i FROM generate_series(1, 100) i; INSERT INTO u SELECT i, 'n' || i FROM generate_series(0, 4) i",
    );
    const queries = {
      soon: 'SELECT g, sum(v) AS s FROM t GROUP BY g',
      later: 'SELECT t.id, u.name, t.v FROM t JOIN u USING (g) WHERE t.v > 10',
      paused: 'SELECT u.name, count(*) AS n, sum(t.v) AS s FROM t JOIN u USING (g) GROUP BY u.name',
    };
    const soon = await createStream(client, 'soon', queries.soon);
    await streamReady(client, soon);
    const later = await told('later', queries.later);
    const paused = await told('paused', queries.paused);
    const log = `millrace_data.w${await baseOf('t')}`;
    await client.query(`UPDATE millrace.stream_table SET status = 'PAUSED' WHERE relation_id = ${paused}; NOTIFY millrace, ''`);
    for (let round = 0; round < 6; round++) {
      await client.query(`BEGIN; UPDATE t SET v = v + ${round} WHERE id % 6 = ${round}; DELETE FROM t WHERE id = ${20 + round};
        INSERT INTO t VALUES (${1000 + round}, ${round % 5}, 7); UPDATE u SET name = name || '!' WHERE g = ${round % 5}; COMMIT`);
      await followsQuery(client, 'soon', queries.soon);
      if (round % 2 === 0) await engine.restart();
      if (round % 3 === 0) {
        expect((await refreshed(later)).action).toBe('DIFFERENTIAL');
        await same('later', queries.later);
      }
    }
    expect(await count(log, 'DISTINCT e')).toBeGreaterThan(1);
    await client.query(`UPDATE millrace.stream_table SET status = 'ACTIVE' WHERE relation_id = ${paused}; NOTIFY millrace, ''`);
    expect((await refreshed(paused)).action).toBe('DIFFERENTIAL');
    expect((await refreshed(later)).action).toBe('DIFFERENTIAL');
    for (const [name, query] of Object.entries(queries)) await same(name, query);
    for (const id of [soon, later, paused]) expect(await streamRow(client, id)).toMatchObject({ delta_lost: null, consecutive_errors: 0 });
    await expect.poll(() => count(log), { timeout: 10_000 }).toBe(0);
  });

  test('prepared statements know that columns have exchanged their names', async () => {
    await client.query(
      'CREATE TABLE swap (id integer PRIMARY KEY, a integer, b integer); INSERT INTO swap SELECT g, g, -g FROM generate_series(1, 5) g',
    );
    // By attnum, as the stream table goes on to see them.
    const id = await told('swapped', 'SELECT id, a FROM swap');
    const value = async (sql: string): Promise<void> => same('swapped', sql);
    for (let i = 0; i < 3; i++) {
      await client.query(`UPDATE swap SET a = a + 10 WHERE id = ${i + 1}`);
      expect((await refreshed(id)).action).toBe('DIFFERENTIAL');
    }
    await value('SELECT id, a FROM swap');
    await client.query('ALTER TABLE swap RENAME a TO x; ALTER TABLE swap RENAME b TO a; ALTER TABLE swap RENAME x TO b');
    await client.query('UPDATE swap SET b = b + 10 WHERE id < 4; UPDATE swap SET a = 0 WHERE id = 5');
    await refreshed(id);
    await value('SELECT id, b FROM swap');
    await client.query('UPDATE swap SET b = b + 1 WHERE id = 4');
    expect(await refreshed(id)).toEqual({ action: 'DIFFERENTIAL', rows: 2 });
    await value('SELECT id, b FROM swap');
  });
});
