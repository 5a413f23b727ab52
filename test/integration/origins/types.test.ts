/** Every type of Postgres comes over bit for bit, by the copy and by the stream: values read at the origin and here are the same text. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { hasOneBinaryForm } from '../../../src/engine/copied-table.ts';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';

/** Types with values; each value becomes a row, and so does NULL. */
const types: Readonly<Record<string, readonly string[]>> = {
  boolean: ['true', 'false'],
  smallint: ['-32768', '32767'],
  integer: ['-2147483648', '0'],
  bigint: ['-9223372036854775808', '9223372036854775807'],
  real: ["'NaN'", "'-Infinity'", '1.17549435e-38', '0.1', "'-0'"],
  'double precision': ["'NaN'", "'Infinity'", '0.1', '5e-324', '1.7976931348623157e308', "'-0'"],
  numeric: ["'NaN'", "'Infinity'", '0.00', '1.10', '1e400', '-123456789012345678901234567890.000000001'],
  'numeric(10,2)': ['1', '-99999999.99'],
  money: ["'-12.34'"],
  text: ["''", "E'tab\\tnewline\\nback\\\\slash\\r'", "'\\N'", "'é😀'", "repeat('x', 100000)"],
  'character varying(5)': ["'ab '", "'abcde'"],
  'character(5)': ["'ab'"],
  '"char"': ["'x'"],
  name: ["'some name'"],
  bytea: ["'\\x00ff5c0a'", "''"],
  date: ["'0044-03-15 BC'", "'infinity'", "'5874897-12-31'"],
  time: ["'24:00:00'", "'12:34:56.123456'"],
  'time(2)': ["'12:34:56.12'"],
  'time with time zone': ["'12:34:56.5+13:45'"],
  timestamp: ["'4713-01-01 00:00:00 BC'", "'-infinity'", "'294276-12-31 23:59:59.999999'"],
  'timestamp with time zone': ["'2024-03-31 01:59:59.999999+00'", "'infinity'", "'0001-01-01 BC'"],
  interval: ["'-1 year 2 months -3 days 04:05:06.789'", "'0'"],
  'interval day to second': ["'1 02:03:04'"],
  uuid: ["'00000000-0000-0000-0000-000000000001'"],
  json: [`'{"a" : 1,  "a": 2}'`, "'null'"],
  jsonb: [`'{"b": [1.0, 1.10], "a": null}'`],
  jsonpath: ["'$.a[*] ? (@ > 1)'"],
  xml: ["'<a>1</a>'"],
  inet: ["'::1/64'", "'192.168.0.1/24'"],
  cidr: ["'10.0.0.0/8'"],
  macaddr: ["'08:00:2b:01:02:03'"],
  macaddr8: ["'08:00:2b:01:02:03:04:05'"],
  'bit(3)': ["'101'"],
  'bit varying': ["'10101'", "''"],
  point: ["'(1.5,-0)'"],
  line: ["'{1,2,3}'"],
  lseg: ["'[(0,0),(1,1)]'"],
  box: ["'(1,1),(0,0)'"],
  path: ["'((0,0),(1,1))'", "'[(0,0),(1,1)]'"],
  polygon: ["'((0,0),(1,1),(1,0))'"],
  circle: ["'<(0,0),1.5>'"],
  tsvector: ["'a:1A b:2'"],
  tsquery: ["'a & !b'"],
  pg_lsn: ["'16/B374D848'"],
  pg_snapshot: ["'10:20:10,14,15'"],
  oid: ['4294967295'],
  regtype: ["'integer'"],
  int4range: ["'[1,5)'", "'empty'", "'(,)'"],
  numrange: ["'[1.0,1.10)'"],
  tstzrange: ["'[2024-01-01 00:00+00,)'"],
  daterange: ["'(,2024-01-01)'"],
  int4multirange: ["'{[1,3),[5,7)}'", "'{}'"],
  'integer[]': ["'{}'", "'{1,NULL,3}'", "'[2:3]={1,2}'", "'{{1,2},{3,4}}'"],
  'text[]': [`'{"a,b","",NULL,"NULL","q\\"uote"}'`],
  'numeric(5,1)[]': ["'{1.0,NaN}'"],
  'timestamp with time zone[]': ["'{infinity,2024-01-01 00:00+00}'"],
  'public.mood': ["'sad'", "'o k'"],
  'public.mood[]': ["'{sad,NULL}'"],
  'public.pair': ["ROW(1, 'x,y')", "ROW(NULL, '')"],
  'public.pair[]': ["ARRAY[ROW(1, '\"')::public.pair]"],
  'public.span': ["'[a,b)'"],
  'public.percent': ['12.50'],
  'public.short': ["'abc'"],
};

const userTypes = `CREATE TYPE public.mood AS ENUM ('sad', 'o k'); CREATE TYPE public.pair AS (a integer, b text);
  CREATE TYPE public.span AS RANGE (subtype = text, collation = "C"); CREATE DOMAIN public.percent AS numeric(5,2) CHECK (VALUE <= 100); CREATE DOMAIN public.short AS varchar(4)`;

describe.each<PostgresMajor>([15, 16, 17, 18])('from PostgreSQL %i', (version) => {
  let origin: TestPostgres;
  let upstream: TestPostgres;
  let admin: pg.Client;
  let extended: ExtendedClient;
  let engine: TestEngine;
  const names = Object.keys(types);

  beforeAll(async () => {
    origin = await startPostgres({ version, settings: { wal_level: 'logical' } });
    upstream = await startPostgres({});
    admin = new pg.Client({ connectionString: origin.url });
    await admin.connect();
    await admin.query(userTypes);
    await admin.query(
      `CREATE TABLE t (id integer PRIMARY KEY, ${names.map((type, i) => `c${i} ${type}`).join(', ')}); CREATE PUBLICATION p FOR ALL TABLES`,
    );
    extended = await extendedClient(upstream.address);
    await extended.client.query(userTypes);
    await extended.run(`CREATE CONNECTION c TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`);
    engine = startEngine(upstream.address);
    await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  }, 120_000);
  afterAll(async () => {
    await engine?.stop();
    await extended?.end();
    await admin?.end();
    await Promise.all([origin?.stop(), upstream?.stop()]);
  });

  const most = Math.max(...Object.values(types).map((values) => values.length));
  /** Row `id` has the values of that number, NULL where a type has fewer. */
  const insert = (id: number, table = 't', columns = names): string =>
    `INSERT INTO ${table} VALUES (${id}, ${columns.map((type) => types[type]?.[id % 100] ?? 'NULL').join(', ')})`;

  async function same(table = 't', version = 'v', columns = names): Promise<void> {
    const read = `SELECT id, ${columns.map((_, i) => `c${i}`).join(', ')}`;
    const wanted = (await texts(admin, `${read} FROM ${table} ORDER BY id`)).map((row) =>
      row.map((value, i) => `${columns[i - 1] ?? 'id'} ${value}`),
    );
    const shown = (): Promise<string[][]> =>
      texts(extended.client, `${read} FROM ${version} ORDER BY id`).then((rows) =>
        rows.map((row) => row.map((value, i) => `${columns[i - 1] ?? 'id'} ${value}`)),
      );
    await expect.poll(shown, { timeout: 10_000 }).toEqual(wanted);
  }

  test('copied, inserted, updated with and without their large values, deleted', async () => {
    for (let i = 0; i <= most; i++) await admin.query(insert(i));
    await extended.run('CREATE TABLE v FROM SOURCE s (REFERENCE t)');
    await same();
    const declared =
      'SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $::regclass AND attnum > 0 ORDER BY attnum';
    const builtin = (rows: (string | null)[][]): (string | null)[][] =>
      rows.filter(([, type]) => !/percent|short/.test(type ?? '') && type !== 'numeric(5,2)' && type !== 'character varying(4)');
    expect(builtin(await texts(extended.client, declared.replace('$', "'v'")))).toEqual(
      builtin(await texts(admin, declared.replace('$', "'t'"))),
    );
    for (let i = 100; i <= 100 + most; i++) await admin.query(insert(i));
    await same();
    // The large text is not sent again.
    await admin.query('UPDATE t SET c0 = NOT c0, c1 = 7');
    await admin.query(`UPDATE t SET id = id + 1000 WHERE id < 50; DELETE FROM t WHERE id % 3 = 1`);
    await same();
  });

  test('of types that have one binary form the copy is binary', async () => {
    const binary = names.filter((type) => hasOneBinaryForm(type));
    expect(binary.length).toBeGreaterThan(20);
    await admin.query(`CREATE TABLE b (id integer PRIMARY KEY, ${binary.map((type, i) => `c${i} ${type}`).join(', ')})`);
    for (let i = 0; i <= most; i++) await admin.query(insert(i, 'b', binary));
    await extended.run('CREATE TABLE w FROM SOURCE s (REFERENCE b)');
    await same('b', 'w', binary);
    const copied = await texts(extended.client, "SELECT rows_copied FROM millrace.snapshot_progress WHERE name = 'w'");
    expect(copied).toEqual([[String(most + 1)]]);
    await admin.query('CREATE TABLE nothing (id integer PRIMARY KEY)');
    await extended.run('CREATE TABLE nothing FROM SOURCE s (REFERENCE nothing)');
    expect(await texts(extended.client, 'SELECT count(*) FROM nothing')).toEqual([['0']]);
  });
});
