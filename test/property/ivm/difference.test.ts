/**
 * Writing a difference leaves exactly the new rows, however rows are paired, and touches nothing when nothing differs.
 * Rows come from small pools, so that equal rows, NULLs and values that are equal but look different meet often; large tables, where most
 * rows differ, are replaced.
 */
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Pairing, type Part, withImageHash, writeDifference } from '../../../src/ivm/difference.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';

const versions = (process.env['MILLRACE_IVM_POSTGRES']?.split(',').map(Number) ?? [15, 18]) as PostgresMajor[];

interface Row {
  readonly numeric: string | null;
  readonly float: string | null;
  readonly text: string | null;
}

const row: fc.Arbitrary<Row> = fc.record({
  numeric: fc.constantFrom('1', '1.0', '1.00', '-0.0', '0', 'NaN', '12345678901234567890.5', null),
  float: fc.constantFrom('0', '-0', 'NaN', 'Infinity', '1e-300', null),
  text: fc.constantFrom('', 'a', 'A', 'ä', 'x'.repeat(3000), null),
});
/** `times`: each row so often, with numbers that make the copies differ or not. */
const table = fc.record({
  rows: fc.array(row, { maxLength: 6 }),
  times: fc.constantFrom(1, 1, 3, 1500),
  numbered: fc.boolean(),
});
type Table = typeof table extends fc.Arbitrary<infer T> ? T : never;

const columns = ['c1', 'c2', 'c3', 'c4', 'k'];
const types = ['numeric', 'float8', 'text COLLATE public.loose', 'bigint', 'bigint'];

/** `k` is unique where rows are paired by it; what the others hold repeats. `shift`: another row for each number. */
function select({ rows, times, numbered }: Table, pairing: Pairing, shift: number): string {
  const literal = (value: string | null, type: string): string => (value === null ? `NULL::${type}` : `'${value}'::${type}`);
  const values = rows.map(({ numeric, float, text }, i) => {
    return `(${[literal(numeric, 'numeric'), literal(float, 'float8'), literal(text, 'text')].join(', ')}, ${i})`;
  });
  const key = pairing.kind === 'image' ? `v.i % 2${numbered ? ' + 2 * g.n' : ''}` : 'v.i * 10000 + g.n';
  if (values.length === 0) return 'SELECT NULL::numeric, NULL::float8, NULL::text COLLATE public.loose, 0::bigint, 0::bigint WHERE false';
  return `SELECT v.a, v.b, v.c COLLATE public.loose, ${numbered ? `g.n + ${shift}` : '0'}::bigint, ${key}::bigint
    FROM (VALUES ${values.join(', ')}) v(a, b, c, i), generate_series(1, ${times}) g(n)`;
}

describe.each(versions)('writing a difference on PostgreSQL %i', (version) => {
  let server: TestPostgres;
  let client: pg.Client;
  beforeAll(async () => {
    server = await startPostgres({ version });
    client = new pg.Client({ connectionString: server.url });
    await client.connect();
    await client.query(`CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`);
  });
  afterAll(async () => {
    await client?.end();
    await server?.stop();
  });

  /** A storage `t` with the rows of a query, by the columns that its pairing needs. */
  async function stored(query: string, pairing: Pairing): Promise<void> {
    await client.query(`DROP TABLE IF EXISTS t;
      CREATE TABLE t (${columns.map((name, i) => `${name} ${types[i]}`).join(', ')}${pairing.kind === 'key' ? ', PRIMARY KEY (k)' : ', h bigint'});
      INSERT INTO t ${withHash(query, pairing)}`);
  }
  const withHash = (query: string, pairing: Pairing): string => {
    switch (pairing.kind) {
      case 'key':
        return query;
      case 'image':
        return withImageHash(query, columns);
      case 'group':
        return `SELECT q.*, pg_catalog.hash_record_extended(ROW(q.k), 0) FROM (${query}) q(${columns.join(', ')})`;
    }
  };
  const written = (pairing: Pairing): string[] => (pairing.kind === 'key' ? columns : [...columns, 'h']);
  const write = async (query: string, pairing: Pairing, part: Part | null = null): Promise<void> => {
    await client.query(writeDifference('t', written(pairing), withHash(query, pairing), pairing, part));
  };
  const differs = async (query: string): Promise<unknown[]> => {
    const is = `SELECT ROW(${columns.join(', ')})::text FROM t`;
    const wanted = `SELECT ROW(x.*)::text FROM (${query}) x`;
    return (await client.query(`((${is}) EXCEPT ALL (${wanted})) UNION ALL ((${wanted}) EXCEPT ALL (${is})) LIMIT 3`)).rows;
  };

  const pairings: Pairing[] = [{ kind: 'key', columns: ['k'] }, { kind: 'group', columns: ['k'] }, { kind: 'image' }];
  test.each(pairings)('by $kind leaves the new rows', { timeout: 120_000 }, async (pairing) => {
    await fc.assert(
      fc.asyncProperty(table, table, fc.constantFrom(0, 0, 7), async (before, after, shift) => {
        const query = select(after, pairing, shift);
        await stored(select(before, pairing, 0), pairing);
        await write(query, pairing);
        expect(await differs(query)).toEqual([]);
        const places = async (): Promise<unknown[]> => (await client.query('SELECT ctid, xmin FROM t ORDER BY ctid')).rows;
        const first = await places();
        await write(query, pairing);
        expect(await places()).toEqual(first);
      }),
      { numRuns: 40 },
    );
  });

  test.each(pairings)('by $kind in a part of the storage leaves the rest alone', { timeout: 120_000 }, async (pairing) => {
    const part: Part = {
      ctes: '',
      stored: (item, list) => `SELECT ${list} FROM ${item} WHERE s.k % 2 = 0`,
      holds: 's.k % 2 = 0',
    };
    await fc.assert(
      fc.asyncProperty(table, table, async (before, after) => {
        await stored(select(before, pairing, 0), pairing);
        const now = `SELECT * FROM (${select(after, pairing, 3)}) y(${columns.join(', ')}) WHERE y.k % 2 = 0`;
        const wanted = `${now} UNION ALL SELECT * FROM (${select(before, pairing, 0)}) y(${columns.join(', ')}) WHERE y.k % 2 <> 0`;
        await write(now, pairing, part);
        expect(await differs(wanted)).toEqual([]);
      }),
      { numRuns: 25 },
    );
  });

  test('of 5,000 rows: all differing are replaced, few differing are found, one of each kind', async () => {
    const query = (where: string): string =>
      `SELECT i::numeric, ${where}, 'x' COLLATE public.loose, i::bigint, i::bigint FROM generate_series(1, 5000) i`;
    for (const pairing of pairings) {
      const kept = async (now: string): Promise<number> => {
        await stored(query('0::float8'), pairing);
        await client.query('DROP TABLE IF EXISTS before; CREATE TABLE before AS SELECT ctid AS place, xmin AS by FROM t');
        await write(now, pairing);
        expect(await differs(now)).toEqual([]);
        return Number((await client.query('SELECT count(*) AS n FROM t JOIN before b ON t.ctid = b.place AND t.xmin = b.by')).rows[0]?.n);
      };
      expect(await kept(query('1::float8'))).toBe(0);
      expect(await kept(query('CASE WHEN i % 100 = 0 THEN 1 ELSE 0 END::float8'))).toBe(4950);
      expect(await kept(`${query('0::float8')} WHERE i > 10`)).toBe(4990);
    }
  });
});
