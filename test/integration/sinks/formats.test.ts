/** Values as Postgres writes them are read as Postgres means them. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { jsonObject } from '../../../src/sinks/formats/json.ts';
import { arrayElements, bytea, interval, recordValues, unscaled } from '../../../src/sinks/formats/literals.ts';
import { epochDays, epochMicros, timeMicros } from '../../../src/sql/time-text.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { column, type } from '../../unit/sinks/columns.ts';

let server: TestPostgres;
let client: pg.Client;

beforeAll(async () => {
  server = await startPostgres();
  client = new pg.Client({ connectionString: server.url });
  await client.connect();
  await client.query("SET TimeZone = 'America/St_Johns'");
});

afterAll(async () => {
  await client.end();
  await server.stop();
});

/** Rows of text, [what is read, what Postgres says of it]. */
async function pairs(sql: string): Promise<[string, string][]> {
  const { rows } = await client.query<[string, string]>({ text: sql, rowMode: 'array' });
  expect(rows.length).toBeGreaterThan(100);
  return rows;
}

const DAYS = `SELECT d FROM (SELECT timestamp '4713-11-24 00:00:00 BC' + n * interval '3301 days 07:13:11.987654' AS d FROM generate_series(0, 2000) n) x
  UNION ALL SELECT timestamp '2023-12-31 23:00:00' + n * interval '11 minutes 0.000001 seconds' FROM generate_series(0, 500) n`;

describe('what Postgres writes', () => {
  it('timestamps', async () => {
    for (const [text, micros] of await pairs(`SELECT d::text, (extract(epoch FROM d) * 1000000)::numeric(30)::text FROM (${DAYS}) x`)) {
      expect([text, epochMicros(text)]).toEqual([text, BigInt(micros)]);
    }
  });

  it('timestamps with time zone, in a zone that has had odd offsets', async () => {
    const sql = `SELECT (d AT TIME ZONE 'UTC')::text, (extract(epoch FROM d) * 1000000)::numeric(30)::text FROM (${DAYS}) x`;
    for (const [text, micros] of await pairs(sql)) expect([text, epochMicros(text)]).toEqual([text, BigInt(micros)]);
  });

  it('dates', async () => {
    for (const [text, days] of await pairs(`SELECT d::date::text, (d::date - date '1970-01-01')::text FROM (${DAYS}) x`)) {
      expect([text, epochDays(text)]).toEqual([text, Number(days)]);
    }
  });

  it('times', async () => {
    const sql = `SELECT d::time::text, (extract(epoch FROM d::time) * 1000000)::bigint::text FROM (${DAYS}) x`;
    for (const [text, micros] of await pairs(sql)) expect([text, timeMicros(text)]).toEqual([text, Number(micros)]);
  });

  it('intervals', async () => {
    const sql = `WITH i AS (SELECT make_interval(months => m, days => d, secs => s) AS i
        FROM unnest(ARRAY[-25, -12, -1, 0, 1, 13, 2400]) m, unnest(ARRAY[-400, -1, 0, 1, 31]) d, unnest(ARRAY[-90061.5, -0.000001, 0, 59.999999, 1e9]) s)
      SELECT i::text, concat_ws(' ', extract(year FROM i) * 12 + extract(month FROM i), extract(day FROM i),
        (extract(hour FROM i) * 3600 + extract(minute FROM i) * 60) * 1000000 + extract(microseconds FROM i)) FROM i`;
    for (const [text, parts] of await pairs(sql)) {
      const read = interval(text);
      expect([text, `${read?.months} ${read?.days} ${read?.micros}`]).toEqual([text, parts.replace(/\.0+$/, '')]);
    }
  });

  it('numerics', async () => {
    const sql = `SELECT n::text, trim_scale(n * 1e20)::text FROM
      (SELECT ((random() - 0.5) * 10 ^ (random() * 20))::numeric * random()::numeric(12, 10) AS n FROM generate_series(1, 300)) x`;
    for (const [text, scaled] of await pairs(sql)) {
      expect([text, unscaled(text, 20)]).toEqual([text, scaled.includes('.') ? undefined : BigInt(scaled)]);
    }
  });

  it('bytes, in both its formats', async () => {
    for (const format of ['hex', 'escape']) {
      await client.query(`SET bytea_output = ${format}`);
      const sql = `SELECT b::text, encode(b, 'base64') FROM (SELECT decode(lpad(to_hex(n * 2654435761 % 4294967296), 16, '5c'), 'hex') AS b
        FROM generate_series(1, 300) n) x`;
      for (const [text, base64] of await pairs(sql)) expect(bytea(text).toString('base64')).toBe(base64);
    }
    await client.query('RESET bytea_output');
  });

  it('arrays and rows of awkward texts', async () => {
    const awkward = `unnest(ARRAY['', ' ', 'a', 'null', 'NULL', ',', '{', '}', '(', ')', '"', '\\', E'\\n', 'a"b\\c', 'ж', NULL]) AS a(a),
      unnest(ARRAY['', 'x y', '"', '\\\\', ',}', NULL]) AS b(b)`;
    for (const [text, json] of await pairs(
      `SELECT array[[a, b], [b, a]]::text, to_json(array[[a, b], [b, a]])::text FROM ${awkward} LIMIT 96`.replace(
        'LIMIT 96',
        'UNION ALL SELECT array[n::text]::text, to_json(array[n::text])::text FROM generate_series(1, 20) n',
      ),
    )) {
      expect(arrayElements(text, ',')).toEqual(JSON.parse(json));
    }
    for (const [text, json] of await pairs(
      `SELECT row(a, b)::text, to_json(array[a, b])::text FROM ${awkward} UNION ALL SELECT row(n, n)::text, to_json(array[n::text, n::text])::text FROM generate_series(1, 20) n`,
    )) {
      expect([text, recordValues(text)]).toEqual([text, JSON.parse(json)]);
    }
  });

  it('floats and integers are numbers to JSON', async () => {
    const made = jsonObject([column('f', 'float8'), column('r', 'float4'), column('i', 'int8'), column('b', type('bool'))], [0, 1, 2, 3]);
    if ('unsupported' in made) throw new Error(made.unsupported.reason);
    const { rows } = await client.query<[string, string, string, string, string]>({
      text: `SELECT f::text, f::real::text, f::bigint::text, (f > 0)::text, row_to_json(x)::text FROM
        (SELECT f, f::real AS r, f::bigint AS i, f > 0 AS b FROM (SELECT (random() - 0.5) * 10 ^ (n % 18) AS f FROM generate_series(-90, 90) n) y) x`,
      rowMode: 'array',
    });
    for (const [f, r, i, b, json] of rows) expect(made.toJson([f, r, i, b])).toBe(json);
  });
});
