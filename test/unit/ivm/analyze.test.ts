import { beforeAll, expect, test } from 'vitest';
import { MillraceError } from '../../../src/errors.ts';
import { analyzeView } from '../../../src/ivm/analyze.ts';
import { planView } from '../../../src/ivm/plan-view.ts';
import { relationNames } from '../../../src/ivm/relations.ts';
import { loadViewParser } from '../../../src/ivm/source-text.ts';
import type { LiveRelation } from '../../../src/ivm/types.ts';
import { explainPlan, maintainSql, storageDdl } from '../../../src/ivm/view-plan.ts';

beforeAll(() => loadViewParser());

const table = (id: number): LiveRelation => ({
  kind: 'live',
  id,
  key: ['c1'],
  columns: ['id', 'a', 'b'].map((name, i) => ({ name, expression: `s.c${i + 1}` })),
});
const lookup = (_: string | null, name: string): LiveRelation | undefined => ({ t: table(1), u: table(2) })[name];
const functions = { string_agg: { aggregate: true, setReturning: false } };
const plan = (query: string): ReturnType<typeof planView> =>
  planView(analyzeView(query, lookup, undefined, functions), { columns: [], functions, groupsHashable: [true] });

test('names of relations, without those of common table expressions', () => {
  const query = 'WITH t AS (SELECT * FROM s.t) SELECT (SELECT 1 FROM u) FROM t, "S"."x y" x, (SELECT 1 FROM t) q';
  expect(relationNames(query)).toEqual([
    { schema: 's', name: 't' },
    { schema: null, name: 'u' },
    { schema: 'S', name: 'x y' },
  ]);
  expect(relationNames('WITH RECURSIVE r AS (SELECT 1 FROM t UNION SELECT 1 FROM r) SELECT 1 FROM r')).toEqual([
    { schema: null, name: 't' },
  ]);
  expect(relationNames('WITH t AS (SELECT 1 FROM t) SELECT 1 FROM t')).toEqual([{ schema: null, name: 't' }]);
});

test.each([
  ['SELECT a FROM t LIMIT 1', /LIMIT without ORDER BY/],
  ['SELECT a FROM t OFFSET 1', /LIMIT without ORDER BY/],
  ['SELECT a FROM t WHERE a IN (SELECT a FROM u LIMIT 1)', /LIMIT without ORDER BY/],
  ['SELECT a FROM t UNION ALL (SELECT a FROM u LIMIT 1)', /LIMIT without ORDER BY/],
  ['SELECT a FROM t WHERE EXISTS (SELECT 1 FROM (SELECT a FROM u LIMIT 1) x)', /LIMIT without ORDER BY/],
  ['SELECT a FROM t FOR UPDATE', /FOR UPDATE/],
  ['SELECT a FROM t TABLESAMPLE system (1)', /TABLESAMPLE/],
  ['DELETE FROM t', /one SELECT/],
])('%s is refused', (query, reason) => {
  expect(() => analyzeView(query, lookup)).toThrow(reason);
  expect(() => analyzeView(query, lookup)).toThrow(MillraceError);
});

test.each([
  'SELECT a FROM t ORDER BY a LIMIT 1',
  'SELECT a FROM t LIMIT NULL::bigint',
  'SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u LIMIT 1)',
])('%s is not', (query) => {
  expect(() => analyzeView(query, lookup)).not.toThrow();
});

test('an unknown relation is named', () => {
  expect(() => analyzeView('SELECT a FROM nowhere', lookup)).toThrow('relation "nowhere" does not exist');
});

test.each([
  ['SELECT t.a FROM t', 'algebraic: rows of one relation, found by the keys of what changed'],
  ['SELECT t.a FROM (t JOIN u ON ((t.a = u.a)))', 'algebraic: rows of a join of 2 relations, found by the keys of what changed'],
  ['SELECT count(*) AS count FROM t', 'algebraic: aggregates kept by adding and subtracting'],
  ['SELECT t.a FROM (t LEFT JOIN u ON ((t.a = u.a)))', 'keyed: rows whose own or joined rows changed are computed again'],
  ['SELECT t.a FROM t UNION ALL SELECT t.a FROM t', 'algebraic: rows of 2 arms, counted by what they look like'],
  [
    'SELECT string_agg(t.b, t.b) AS s FROM t',
    'full: string_agg() without GROUP BY needs the whole query; only rows that differ are written',
  ],
])('%s: %s', (query, way) => {
  expect(explainPlan(plan(query))).toBe(way);
});

test('a query whose result changes with time is computed as a whole, and says so', () => {
  const made = plan('SELECT t.a FROM t WHERE (t.b > now())');
  expect([made.clock, made.reason.way]).toEqual([true, 'full']);
  expect(plan('SELECT t.a FROM t').clock).toBe(false);
});

test('a query that cannot be written anew is kept without stages', () => {
  const query = 'SELECT t.a FROM t UNION SELECT u.a FROM u';
  const made = planView(analyzeView(query, lookup), { columns: [], functions: {}, groupsHashable: [], staged: false });
  expect([made.stages.length, made.body.kind, made.reason.way]).toEqual([0, 'whole', 'full']);
});

test('a step reads stages by negative numbers, which are tables of the view', () => {
  const made = plan('SELECT q.n, count(*) AS m FROM (SELECT t.a, count(*) AS n FROM t GROUP BY t.a) q GROUP BY q.n');
  expect(made.stages).toHaveLength(1);
  const [first, second, last] = maintainSql(made, 9, new Set([1]));
  expect(first).toContain('MERGE INTO millrace_data.s9_1 s');
  expect(second).toContain('INSERT INTO millrace_data.s9 ');
  expect(last).toBe('SELECT millrace_data.capture_s9_emptied()');
  expect(storageDdl(made, 9).at(-1)).toContain('DELETE FROM millrace_data.d9_1');
  expect(maintainSql(made, 9, new Set([2]))).toEqual([]);
});

test('functions are listed once each, as printed', () => {
  const query = 'SELECT upper(x.f(t.b)) AS u, count(*) FILTER (WHERE (lower(t.b) = upper(t.b))) AS c FROM t GROUP BY (upper(x.f(t.b)))';
  expect(analyzeView(query, lookup).functions).toEqual(['upper', 'x.f', 'count', 'lower']);
});

test('a key column that is shown is stored once, and hidden ones are added', () => {
  const body = plan('SELECT u.a, t.id FROM (t JOIN u ON ((t.a = u.a)))').body;
  expect(body.kind === 'rows' && body.keys).toEqual([['c2'], ['k2_1']]);
});

test('an epoch that does not touch an input needs no statement', () => {
  expect(maintainSql(plan('SELECT t.a FROM t'), 9, new Set([2]))).toEqual([]);
  expect(maintainSql(plan('SELECT t.a FROM t'), 9, new Set([1, 2]))).toHaveLength(1);
});

test('positions are right behind characters of more than one byte', () => {
  const body = plan("SELECT 'é€😀'::text AS x, t.a FROM t WHERE (t.b <> 'ü'::text)").body;
  expect(body.kind === 'rows' && body.columns.slice(0, 2).map((column) => column.expression)).toEqual(["'é€😀'::text", 't.a']);
  expect(body.kind === 'rows' && body.source.where).toBe("(t.b <> 'ü'::text)");
});
