/** When results over the time change by themselves, and expressions over storages. */
import { beforeAll, expect, test } from 'vitest';
import { analyzeView } from '../../../src/ivm/analyze.ts';
import { type Expiry, expirySql } from '../../../src/ivm/expiry.ts';
import { loadViewParser, overStorage } from '../../../src/ivm/source-text.ts';
import type { LiveRelation } from '../../../src/ivm/types.ts';

beforeAll(() => loadViewParser());

const table = (id: number): LiveRelation => ({
  kind: 'live',
  id,
  key: ['c1'],
  columns: ['id', 'at', 'k'].map((name, i) => ({ name, expression: `s.c${i + 1}` })),
});
const lookup = (_: string | null, name: string): LiveRelation | undefined => ({ t: table(1), u: table(2) })[name];
const expiryOf = (query: string): Expiry | null => analyzeView(query, lookup).shape.expiry;

test.each([
  ["SELECT id FROM t WHERE at > now() - '01:00:00'::interval", 1, false],
  ["SELECT id FROM t WHERE (now() - '01:00:00'::interval) >= at OR k = 1", 1, false],
  ["SELECT id FROM t WHERE at > now() - '1 day 01:00:00'::interval", 1, false],
  // Months are not equally long, and what a column holds is not known here.
  ["SELECT id FROM t WHERE at > now() - '1 mon'::interval", 1, true],
  ["SELECT id FROM t WHERE (now() - at) < '1 hour'::interval", 1, true],
  ["SELECT id FROM t WHERE (at - now()) < '1 hour'::interval AND at > CURRENT_TIMESTAMP", 2, true],
  ['SELECT t.id FROM t JOIN u ON u.id = t.id AND u.at < now()', 1, false],
  ['SELECT CASE WHEN at < now() THEN 1 END AS x, count(*) FILTER (WHERE at > now()) AS n FROM t GROUP BY 1', 1, false],
  ['SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.id = t.id AND u.at > LOCALTIMESTAMP)', 1, false],
  ['SELECT id FROM t WHERE at >= CURRENT_DATE - 7', 0, true],
  ["SELECT id FROM t WHERE now() > '2030-01-01'::timestamptz", 1, false],
  ["SELECT k, count(*) AS n FROM t GROUP BY k HAVING max(at) > (now() - '01:00:00'::interval)", 1, false],
  ['SELECT id FROM t WHERE millrace.mz_now(at) <= at', 1, false],
  // With a row that is not there as well.
  ["SELECT t.id FROM t LEFT JOIN u ON u.id = t.id WHERE COALESCE(u.at, '2030-01-01'::timestamptz) > now()", 2, false],
])('%s: instants of %i comparisons, midnight %s', (query, comparisons, daily) => {
  const expiry = expiryOf(query);
  expect({ comparisons: expiry?.queries.length, daily: expiry?.daily }).toEqual({ comparisons, daily });
});

test.each([
  'SELECT id, now() - at AS age FROM t',
  "SELECT id FROM t WHERE at > date_trunc('hour', now())",
  'SELECT id FROM t WHERE at = now()',
  'SELECT id FROM t JOIN u USING (id) WHERE t.at - u.at > now() - u.at',
  'SELECT id FROM t WHERE at > (SELECT max(u.at) FROM u) AND clock_timestamp() > at',
  'SELECT id FROM t WHERE extract(hour FROM now()) > 12',
  'SELECT id FROM t WHERE at > CURRENT_TIMESTAMP(0)',
  'SELECT k FROM t GROUP BY k HAVING avg(at) > now()',
  'SELECT k FROM t GROUP BY k HAVING max(at) - min(at) > now() - max(at)',
  'SELECT id FROM (SELECT id, rank() OVER (ORDER BY at) AS r FROM t) x WHERE r > 3 AND at > now()',
  'SELECT id FROM t WHERE millrace.mz_now(at) = at',
])('%s: cannot be told', (query) => {
  expect(expiryOf(query)).toBeNull();
});

test('the instant is where both sides meet', () => {
  const sql = (query: string): string => {
    const expiry = expiryOf(query);
    return expiry === null ? '' : expirySql(expiry, (id) => `s${id}`);
  };
  expect(sql("SELECT id FROM t WHERE at > now() - '01:00:00'::interval")).toContain("SELECT r1.at + '01:00:00'::interval AS t");
  expect(sql("SELECT id FROM t WHERE at > now() - '1 mon'::interval")).toContain("now() + (r1.at - (now() - '1 mon'::interval))");
});

test('columns of an expression over a storage are renamed, and nothing else is', () => {
  expect(overStorage(`CASE WHEN s.n > 0 THEN s."s.n" || ' s.n ' END`, (name) => `<${name}>`)).toBe(
    `CASE WHEN s.<n> > 0 THEN s.<s.n> || ' s.n ' END`,
  );
});
