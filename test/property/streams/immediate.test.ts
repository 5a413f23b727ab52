/**
 * Stream tables in IMMEDIATE mode beside writers of all kinds: in every snapshot that anyone takes, each is its query.
 */
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { sortedRows } from '../../support/streams.ts';

const queries = {
  joined: 'SELECT b.id, a.k, b.v + a.v AS v FROM b JOIN a ON a.id = b.a WHERE a.v <> b.v',
  grouped: 'SELECT a.k, count(*) AS n, sum(b.v) AS s, max(b.v) AS m FROM a JOIN b ON b.a = a.id GROUP BY a.k',
  outer_joined: 'SELECT a.id, count(b.id) AS n FROM a LEFT JOIN b ON b.a = a.id GROUP BY a.id',
  distinct_v: 'SELECT DISTINCT v FROM b UNION SELECT v FROM loose',
  bag: 'SELECT v, k FROM loose WHERE v > 2',
  nested: 'SELECT x.n, count(*) AS c FROM (SELECT a, count(*) AS n FROM b GROUP BY a) x GROUP BY x.n',
};

/** Over those, each with its query and what that comes to over the tables. */
const cascades: Readonly<Record<string, readonly [string, string]>> = {
  over_grouped: [
    'SELECT k, n FROM grouped WHERE s > 5',
    'SELECT a.k, count(*) AS n FROM a JOIN b ON b.a = a.id GROUP BY a.k HAVING sum(b.v) > 5',
  ],
  // Over a table and what is kept over that table, and another one: changed by one statement, or by several.
  diamond: [
    'SELECT a.id, o.n, g.m FROM a JOIN outer_joined o USING (id) LEFT JOIN grouped g ON g.k = a.k',
    `SELECT a.id, (SELECT count(*) FROM b WHERE b.a = a.id) AS n, g.m FROM a LEFT JOIN (${queries.grouped}) g ON g.k = a.k`,
  ],
  third: ['SELECT sum(n) AS n FROM over_grouped', `SELECT sum(n) AS n FROM (${queries.grouped}) x WHERE s > 5`],
  over_bag: ['SELECT k, count(*) AS n FROM bag GROUP BY k', 'SELECT k, count(*) AS n FROM loose WHERE v > 2 GROUP BY k'],
};

const id = fc.integer({ min: 1, max: 12 });
const value = fc.integer({ min: 0, max: 6 });
const predicate = fc.oneof(
  id.map((one) => `id = ${one}`),
  id.map((one) => `id > ${one}`),
  value.map((one) => `v = ${one}`),
);
/** Failing statements (a key that is there already, a foreign key) are part of it. */
const anyStatement: fc.Arbitrary<string> = fc.oneof(
  fc.tuple(id, value).map(([i, v]) => `INSERT INTO a VALUES (${i}, 'k${i % 3}', ${v}) ON CONFLICT (id) DO UPDATE SET v = excluded.v`),
  fc.tuple(id, id, value).map(([i, a, v]) => `INSERT INTO b SELECT ${i}, id, ${v} FROM a WHERE id = ${a} ON CONFLICT DO NOTHING`),
  fc.tuple(id, id, value).map(([i, a, v]) => `INSERT INTO b VALUES (${i}, ${a}, ${v})`),
  fc.tuple(predicate, value).map(([p, v]) => `UPDATE b SET v = ${v} WHERE ${p}`),
  fc.tuple(predicate, value).map(([p, v]) => `UPDATE a SET v = v + ${v}, k = 'k' || ${v} % 3 WHERE ${p}`),
  fc.tuple(predicate).map(([p]) => `DELETE FROM a WHERE ${p}`),
  fc.tuple(predicate).map(([p]) => `DELETE FROM b WHERE ${p}`),
  fc.tuple(value, value).map(([v, n]) => `INSERT INTO loose SELECT 'k' || g % 2, ${v} FROM generate_series(1, ${n * 9}) g`),
  fc.tuple(value).map(([v]) => `DELETE FROM loose WHERE v = ${v}`),
  fc.tuple(value).map(([v]) => `UPDATE loose SET k = k WHERE v = ${v}`),
  fc
    .tuple(id, value)
    .map(
      ([i, v]) =>
        `WITH x AS (UPDATE a SET v = ${v} WHERE id = ${i} RETURNING id), y AS (DELETE FROM b WHERE v = ${v} RETURNING v) INSERT INTO loose SELECT 'cte', v FROM y`,
    ),
  fc
    .tuple(id, predicate)
    .map(
      ([i, p]) =>
        `DO $$ BEGIN DELETE FROM b WHERE ${p}; BEGIN INSERT INTO a VALUES (${i}, 'x', 1); EXCEPTION WHEN unique_violation THEN UPDATE a SET id = id + 20 WHERE id = ${i}; END; END $$`,
    ),
  fc.constant('TRUNCATE b'),
  fc.constant('SAVEPOINT s'),
  fc.constant('ROLLBACK TO s'),
);
/** Of one partition, between partitions, and of partitions themselves. */
const partStatement: fc.Arbitrary<string> = fc.oneof(
  fc
    .tuple(id, id, value)
    .map(
      ([i, a, v]) =>
        `INSERT INTO b_${i < 5 ? 1 : 2} (id, a, v) SELECT ${i}, id, ${v} FROM a WHERE id = ${a} ON CONFLICT (id) DO UPDATE SET v = 9`,
    ),
  fc.tuple(predicate, value).map(([p, v]) => `UPDATE b_1 SET v = ${v} WHERE ${p}`),
  fc.tuple(id, id).map(([i, to]) => `UPDATE b SET id = ${to} WHERE id = ${i}`),
  fc
    .tuple(id, id, value)
    .map(([i, to, v]) => `MERGE INTO b USING (SELECT ${i} AS id) x ON x.id = b.id WHEN MATCHED THEN UPDATE SET id = ${to}, v = ${v}`),
  fc.tuple(predicate).map(([p]) => `DELETE FROM b_2 WHERE ${p}`),
  fc.constant('TRUNCATE b_1'),
  fc.constant('ALTER TABLE b DETACH PARTITION b_1; ALTER TABLE b ATTACH PARTITION b_1 FOR VALUES FROM (0) TO (5)'),
  fc.constant('ALTER TABLE b DETACH PARTITION b_1; UPDATE b_1 SET v = 5; ALTER TABLE b ATTACH PARTITION b_1 FOR VALUES FROM (0) TO (5)'),
);
const transactionOf = (statement: fc.Arbitrary<string>) =>
  fc.record({
    level: fc.constantFrom('READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE'),
    statements: fc.array(statement, { minLength: 1, maxLength: 4 }),
    commits: fc.integer({ min: 0, max: 4 }).map((n) => n > 0),
  });

const plain = 'CREATE TABLE b (id integer PRIMARY KEY, a integer REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE, v integer)';
const partitioned = `
  CREATE TABLE b (id integer PRIMARY KEY, a integer REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE, v integer) PARTITION BY RANGE (id);
  CREATE TABLE b_1 (v integer, gone text, id integer NOT NULL, a integer); ALTER TABLE b_1 DROP COLUMN gone;
  ALTER TABLE b ATTACH PARTITION b_1 FOR VALUES FROM (0) TO (5);
  CREATE TABLE b_2 PARTITION OF b FOR VALUES FROM (5) TO (10) PARTITION BY RANGE (id);
  CREATE TABLE b_2_1 PARTITION OF b_2 FOR VALUES FROM (5) TO (8);
  CREATE TABLE b_2_2 PARTITION OF b_2 DEFAULT;
  CREATE TABLE b_3 PARTITION OF b FOR VALUES FROM (10) TO (100)`;

describe.each([
  [15, 'a table', plain],
  [18, 'a table', plain],
  [15, 'partitions', partitioned],
  [18, 'partitions', partitioned],
] as const)('on PostgreSQL %i, over %s', (version, _, tableB) => {
  const isPlain = tableB === plain;
  const transaction = transactionOf(isPlain ? anyStatement : fc.oneof(anyStatement, partStatement));
  let upstream: TestPostgres;
  let millrace: TestMillrace;
  const clients: pg.Client[] = [];
  const open = async (): Promise<pg.Client> => {
    const client = new pg.Client({ connectionString: upstream.url });
    await client.connect();
    clients.push(client);
    return client;
  };
  let reader: pg.Client;
  let writers: pg.Client[];

  beforeAll(async () => {
    upstream = await startPostgres({ version, settings: { wal_level: 'logical', deadlock_timeout: '50ms' } });
    millrace = await startMillrace({ upstream: upstream.address });
    reader = await open();
    await reader.query(`
      CREATE TABLE a (id integer PRIMARY KEY, k text, v integer);
      ${tableB};
      CREATE TABLE loose (k text, v integer)`);
    const creator = new pg.Client({ connectionString: millrace.url() });
    await creator.connect();
    for (const [name, query] of Object.entries(queries)) {
      await creator.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$, NULL, 'IMMEDIATE')`);
    }
    for (const [name, [query]] of Object.entries(cascades)) {
      await creator.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$, NULL, 'IMMEDIATE')`);
    }
    await creator.end();
    writers = [await open(), await open(), await open()];
  }, 120_000);

  afterAll(async () => {
    for (const client of clients) await client.end().catch(() => undefined);
    await millrace?.stop();
    await upstream?.stop();
  });

  const check = async (): Promise<void> => {
    // Locked before the snapshot is taken: one that is older than a TRUNCATE would find the table empty all the same.
    for (let locked = false; !locked; ) {
      locked = await reader.query('BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE a, b, loose IN ACCESS SHARE MODE').then(
        () => true,
        async (error: pg.DatabaseError) => {
          // A TRUNCATE that waits for the other table: one of the two has to give way.
          if (error.code !== '40P01') throw error;
          await reader.query('ROLLBACK');
          return false;
        },
      );
    }
    try {
      for (const [name, query] of [
        ...Object.entries(queries),
        ...Object.entries(cascades).map(([name, [, whole]]) => [name, whole] as const),
      ]) {
        expect({ name, rows: await sortedRows(reader, `SELECT * FROM ${name}`) }).toEqual({ name, rows: await sortedRows(reader, query) });
      }
    } finally {
      await reader.query('COMMIT');
    }
  };

  test('each is its query in every snapshot, and seen by writers within their transactions', async () => {
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(fc.array(transaction, { minLength: 1, maxLength: 5 }), { minLength: 3, maxLength: 3 }), async (scripts) => {
        let writing = writers.length;
        const ended = (): void => {
          writing -= 1;
        };
        const work = writers.map(async (writer, w) => {
          for (const { level, statements, commits } of scripts[w] ?? []) {
            await writer.query(`BEGIN ISOLATION LEVEL ${level}`);
            try {
              for (const sql of statements) await writer.query(sql);
              await writer.query(commits ? 'COMMIT' : 'ROLLBACK');
            } catch (error) {
              if (!(error instanceof pg.DatabaseError)) throw error;
              // Of the data, of a savepoint that is not there, of serialization; none of the machinery.
              // And of partitions: rows that belong to none, or to another.
              const expected = isPlain ? /^(23503|23505|3B001|40001|40P01)$/ : /^(23503|23505|23514|3B001|40001|40P01|55006)$/;
              expect([error.code, error.message]).toEqual([expect.stringMatching(expected), expect.anything()]);
              refused += 1;
            } finally {
              await writer.query('ROLLBACK');
            }
          }
        });
        for (const one of work) void one.then(ended, ended);
        try {
          while (writing > 0) await check();
        } finally {
          await Promise.allSettled(work);
        }
        await Promise.all(work);
        await check();
      }),
      { numRuns: isPlain ? 40 : 25 },
    );
    expect(refused).toBeGreaterThan(0);
  }, 240_000);
});
