import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { borderSql, type KeyColumn, type KeyValue, keysCondition, rangeCondition } from '../../../src/replication/key-ranges.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let origin: TestPostgres;
let client: pg.Client;

beforeAll(async () => {
  origin = await startPostgres();
  client = new pg.Client(origin.url);
  await client.connect();
  await client.query(`CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`);
});
afterAll(async () => {
  await client?.end();
  await origin?.stop();
});

const rows = async (text: string): Promise<string[][]> => (await client.query({ text, rowMode: 'array' })).rows;

/** Key columns with their types, and what makes 1000 different keys of g. */
const shapes: Record<string, readonly (readonly [type: string, value: string])[]> = {
  'an integer, in descending order': [['integer', '-g']],
  'text in an order without case': [['text COLLATE nocase', "chr(97 + g % 26) || g || 'É'"]],
  'characters padded with blanks': [['character(12)', "g || 'x'"]],
  'three columns': [
    ['text', "(ARRAY['a', 'B', ''])[1 + g % 3]"],
    ['numeric(12,3)', "CASE WHEN g < 10 THEN 'NaN' ELSE g % 100 / 7.0 END"],
    ['integer', 'g'],
  ],
  'a time, and a name in quotes': [
    ['timestamptz', "timestamptz '2026-03-29 00:00+01' + g * interval '7 minutes'"],
    ['text', "'O''Br\\ien'"],
  ],
  'floating point': [['double precision', 'sqrt(g) * 1e-7']],
  bytes: [['bytea', "decode(md5(g::text), 'hex')"]],
};

for (const [name, columns] of Object.entries(shapes)) {
  test(`ranges of ${name} hold every key once`, async () => {
    const key: KeyColumn[] = columns.map(([type], i) => ({ name: `Key ${i}`, type: type.replace(/ COLLATE.*/, '') }));
    const list = columns.map(([type], i) => `"Key ${i}" ${type}`).join(', ');
    await client.query(`DROP TABLE IF EXISTS t; CREATE TABLE t (${list}, PRIMARY KEY (${key.map((column) => `"${column.name}"`).join(', ')}));
      INSERT INTO t SELECT ${columns.map(([, value]) => value).join(', ')} FROM generate_series(1, 1000) g`);
    const sizes: number[] = [];
    for (let after: KeyValue | null = null; ; ) {
      const upTo: KeyValue | null = (await rows(borderSql('public.t', key, after, 130)))[0] ?? null;
      const condition = rangeCondition(key, { after, upTo });
      sizes.push(Number((await rows(`SELECT count(*)::text FROM t WHERE ${condition}`))[0]?.[0]));
      if (upTo === null) break;
      expect(await rows(`SELECT count(*)::text FROM t WHERE ${keysCondition(key, [upTo])}`)).toEqual([['1']]);
      after = upTo;
    }
    expect(sizes).toEqual([130, 130, 130, 130, 130, 130, 130, 90]);
  });
}
