import { beforeAll, describe, expect, test } from 'vitest';
import { deparseSql } from '../../../src/sql/deparse.ts';
import { functionNames, loadPostgresParser, parseSql, relationNames } from '../../../src/sql/postgres-parser.ts';

beforeAll(loadPostgresParser);

describe('deparseSql', () => {
  // deparseSql compares the trees itself and throws; here the list of what it can be relied on for.
  test.each([
    'SELECT sum(a) FILTER (WHERE b) OVER w FROM t WINDOW w AS (PARTITION BY c ORDER BY d DESC NULLS LAST ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES)',
    'WITH RECURSIVE x(a) AS (SELECT 1 UNION ALL SELECT a+1 FROM x) SEARCH DEPTH FIRST BY a SET s CYCLE a SET c USING p SELECT * FROM x',
    'WITH x AS MATERIALIZED (SELECT 1), y AS NOT MATERIALIZED (SELECT 2) SELECT * FROM x, y',
    'SELECT a::interval day to second(3), b::numeric(10,2), c::varchar(3)[], d::timestamp(3) with time zone, e::bit varying(3), f::time(2), g::char(5), h::"char", i::bpchar',
    "SELECT interval '1 day', interval(3) '1 s', interval '1' year, date '2020-01-01', float8 'NaN', s.t 'x'",
    'SELECT array[1,2,3], array[[1,2],[3,4]], a[1:2], a[1], (b).c, (b).*, a[:2], array(SELECT 1)',
    "SELECT a->'b'->>'c', a #> '{x}', a @> '{}'::jsonb, a ? 'b', a ?| array['x'], a - 'x', a @? '$.x', a->('x'||'y')",
    'SELECT a COLLATE "C", a COLLATE pg_catalog."de_DE" FROM t ORDER BY a COLLATE "C" USING <',
    'SELECT a IS DISTINCT FROM b, a IS NOT DISTINCT FROM b, a IS NOT NULL, (a IS NULL) IS TRUE, (a = b) IS DISTINCT FROM c',
    "SELECT a OPERATOR(pg_catalog.+) b, OPERATOR(pg_catalog.-) a, a || b, a ~* 'x', a NOT LIKE b, a ILIKE b ESCAPE 'x', a SIMILAR TO 'x'",
    'SELECT (a,b) < (c,d), ROW(a,b) = ROW(1,2), ROW(1), (a,b) IN (SELECT 1,2), a = ANY(array[1]), a <> ALL(SELECT 1)',
    'SELECT a, b, grouping(a) FROM t GROUP BY GROUPING SETS ((a), (b), ()), ROLLUP(a,b), CUBE(a,(b,c)) HAVING count(*) > 1',
    'SELECT * FROM t, LATERAL (SELECT * FROM u WHERE u.a = t.a) x, LATERAL f(t.a) WITH ORDINALITY AS y(a,b), ROWS FROM (f(1), g(2) AS (a int, b text)) z',
    "VALUES (1,'a'),(2,'b') ORDER BY 1 LIMIT 1",
    'SELECT * FROM a JOIN b USING (x, y) AS j LEFT JOIN c ON true RIGHT JOIN d ON a.x=d.x FULL JOIN e ON false CROSS JOIN f NATURAL JOIN g',
    'SELECT * FROM (a JOIN b ON true) AS j(x,y), ONLY t AS x(a,b) TABLESAMPLE system (10) REPEATABLE (3)',
    'SELECT DISTINCT ON (a, b) a FROM t ORDER BY a, b FETCH FIRST (1+2) ROWS ONLY',
    'SELECT 1 UNION (SELECT 2 EXCEPT ALL SELECT 3) INTERSECT SELECT 4 ORDER BY 1',
    '(SELECT 1 LIMIT 1) UNION ALL (SELECT 2 ORDER BY 1)',
    'SELECT CASE WHEN a THEN b ELSE c END, CASE a WHEN 1 THEN 2 END, coalesce(a,b), nullif(a,b), greatest(a,b), current_date, current_timestamp(3), current_user',
    "SELECT extract(year FROM a), position('a' IN b), substring(a FROM 1 FOR 2), trim(both 'x' FROM a), overlay(a PLACING b FROM 1 FOR 2), a AT TIME ZONE 'utc', a AT LOCAL",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a), string_agg(DISTINCT a, ',' ORDER BY a DESC), count(*), f(a => 1, VARIADIC c)",
    'SELECT "select", "A b", "x""y" AS "Z", t."user" FROM "S"."T"',
    'SELECT -1, - 1, -a, -(-1), 2 ^ -3, a - -1, 1 - (2 - 3), (1+2)*3, NOT (a AND b), (a OR b) AND c, -(a ^ b), (-a) ^ b',
    "SELECT 1e10, 1.50, .5, 12345678901234567890, b'01', x'1F', 'a''b', E'a\\nb', $$x'y$$, '\\', E'\\\\'",
    'SELECT (a + b)::int, a + b::int, (-1)::int, -1::int, (a = b)::text, (SELECT 1)::int, \'{}\'::text[], null::int, (a COLLATE "C")::text',
    'SELECT a BETWEEN 1 AND 2, a NOT BETWEEN SYMMETRIC 1 AND 2, a IN (1,2), a NOT IN (1), EXISTS (SELECT 1)',
    "SELECT json_object('a' : 1), json_array(1,2), json_arrayagg(a ORDER BY b), json_scalar(1), a IS JSON OBJECT",
    "SELECT 'é', '日本', '😊' FROM \"日本\"",
  ])('%s', (sql) => {
    const text = deparseSql(parseSql(sql));
    expect(text.includes('\n')).toBe(sql.includes('\\n'));
    expect(deparseSql(parseSql(text))).toBe(text);
  });

  // When one of these starts to pass, the comment in postgres-parser.ts has to be shortened.
  test.each([
    "SELECT json_value(a, '$.x')",
    "SELECT json_query(a, '$.x')",
    "SELECT json_exists(a, '$.x')",
    "SELECT * FROM json_table(a, '$' COLUMNS (b int PATH '$.b'))",
    "SELECT * FROM xmltable('/a' PASSING b COLUMNS c int PATH 'd')",
    'SELECT a FROM t GROUP BY DISTINCT a',
    'SELECT (array[1,2])[1]',
    'SELECT a FROM t ORDER BY a FETCH FIRST 3 ROWS WITH TIES',
  ])('refuses what it would get wrong: %s', (sql) => {
    expect(() => deparseSql(parseSql(sql))).toThrow(expect.objectContaining({ condition: 'feature_not_supported' }));
  });
});

test('errors are those of Postgres, positions count characters', () => {
  expect(() => parseSql("SELECT '😊é' FROM WHERE")).toThrow(
    expect.objectContaining({ fields: { severity: 'ERROR', code: '42601', message: 'syntax error at or near "WHERE"', position: 18 } }),
  );
});

test.each<[string, string[]]>([
  ['SELECT 1', []],
  ['SELECT * FROM a, b.c, a JOIN "D" ON true', ['a', 'b.c', 'D']],
  [
    'SELECT (SELECT max(x) FROM a), ARRAY(SELECT 1 FROM b) FROM c WHERE EXISTS (SELECT 1 FROM d) ORDER BY (SELECT 1 FROM e)',
    ['a', 'b', 'c', 'd', 'e'],
  ],
  ['WITH a AS (SELECT * FROM b) SELECT * FROM a', ['b']],
  ['WITH a AS (SELECT * FROM a) SELECT * FROM a', ['a']],
  ['WITH RECURSIVE a AS (SELECT * FROM b UNION SELECT * FROM a) SELECT * FROM a', ['b']],
  ['WITH RECURSIVE a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a', []],
  ['WITH a AS (SELECT 1), b AS (SELECT * FROM a) SELECT * FROM s.a, b', ['s.a']],
  ['SELECT * FROM (WITH a AS (SELECT 1) SELECT * FROM a) x, a', ['a']],
  ['WITH a AS (WITH b AS (SELECT * FROM c) SELECT * FROM b) SELECT * FROM a, b', ['c', 'b']],
  ['WITH a AS (SELECT 1) SELECT * FROM a UNION SELECT * FROM b UNION (WITH b AS (SELECT 1) SELECT * FROM b)', ['b']],
  ['WITH a AS (SELECT 1) SELECT * FROM t, LATERAL (SELECT * FROM a WHERE a.x = t.x) l', ['t']],
  ['SELECT * FROM t x FOR UPDATE OF x', ['t']],
  ['TABLE t', ['t']],
  ['SELECT * FROM ONLY t TABLESAMPLE system (1)', ['t']],
  ['SELECT * FROM f(1), generate_series(1, (SELECT max(x) FROM u))', ['u']],
  ['INSERT INTO a SELECT * FROM b', ['b']],
  ['WITH b AS (SELECT * FROM c) INSERT INTO a SELECT * FROM b', ['c']],
  ['WITH x AS (UPDATE a SET b = 1 FROM c RETURNING *), y AS (DELETE FROM d USING e RETURNING *) SELECT * FROM x, y', ['a', 'c', 'd', 'e']],
  ['CREATE MATERIALIZED VIEW m AS SELECT * FROM a', ['a']],
])('relationNames: %s', (sql, expected) => {
  expect(
    relationNames(sql)
      .map(({ schema, name }) => (schema === null ? name : `${schema}.${name}`))
      .sort(),
  ).toEqual([...expected].sort());
});

test('functionNames', () => {
  expect(
    functionNames(
      'SELECT now(), pg_catalog.random(), s.f(lower(a)), count(*) OVER (ORDER BY abs(b)) FROM g(1) WHERE (SELECT max(x) FROM t) > 1',
    ),
  ).toEqual(expect.arrayContaining(['now', 'random', 's.f', 'lower', 'count', 'abs', 'g', 'max']));
  expect(
    functionNames(
      'SELECT current_date, current_time, current_timestamp(3), localtimestamp, current_user, session_user, current_schema, user',
    ),
  ).toEqual([
    'current_date',
    'current_time',
    'current_timestamp',
    'localtimestamp',
    'current_user',
    'session_user',
    'current_schema',
    'user',
  ]);
  expect(functionNames('SELECT coalesce(a, b) + 1 FROM t')).toEqual([]);
});
