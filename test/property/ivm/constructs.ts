/**
 * One query for every construct, over relations whose columns are a, b, c, d, "Weird ""col", f, u. `$1`, `$2`, `$3`: relations.
 * `way`: what it must at least come to; `exact` false: rows that are equal but look different may be shown either way.
 */
export interface Construct {
  readonly name: string;
  readonly sql: string;
  readonly way: 'algebraic' | 'keyed' | 'full';
  readonly exact?: false;
}

const w = '"Weird ""col"';
const construct = (way: Construct['way'], name: string, sql: string): Construct => ({ name, way, sql });

export const constructs: readonly Construct[] = [
  construct('algebraic', 'filter and project', `SELECT t.a, t.c || 'x' AS x, t.u FROM $1 t WHERE t.a > 1`),
  construct('keyed', 'left join', `SELECT t1.a, t1.c, t2.b, t2.f FROM $1 t1 LEFT JOIN $2 t2 ON t1.a = t2.a AND t2.b > 1`),
  construct(
    'keyed',
    'left join, condition that is no equality',
    `SELECT t1.a, t2.c FROM $1 t1 LEFT JOIN $2 t2 ON t1.a < t2.a AND t1.c = t2.c`,
  ),
  construct('keyed', 'right join using', `SELECT a, t1.c, t2.b FROM $1 t1 RIGHT JOIN $2 t2 USING (a)`),
  construct(
    'keyed',
    'full join using',
    `SELECT t1.*, t2.c AS c2 FROM (SELECT a, c AS x FROM $1) t1 FULL JOIN (SELECT c, a FROM $2) t2 USING (a)`,
  ),
  construct(
    'keyed',
    'full join with a filter',
    `SELECT t1.a, t2.b, t2.c FROM $1 t1 FULL JOIN $2 t2 ON t1.a = t2.a AND t1.c = t2.c WHERE t2.b IS NULL OR t1.a > 1`,
  ),
  construct(
    'keyed',
    'full join under subqueries',
    `SELECT t1.a, t2.c, (SELECT count(*) FROM $3 t3 WHERE t3.a = t1.a) AS n FROM $1 t1 FULL JOIN $2 t2 ON t1.a = t2.a WHERE EXISTS (SELECT FROM $3 t4 WHERE t4.c = t2.c) OR t2.b IN (SELECT b FROM $3)`,
  ),
  construct(
    'keyed',
    'full join of joins',
    `SELECT t1.a, t2.c, t3.d FROM ($1 t1 JOIN $2 t2 ON t2.a = t1.a AND t2.c = t1.c) FULL JOIN $3 t3 ON t3.d = t1.d`,
  ),
  construct(
    'keyed',
    'two full joins',
    `SELECT a, t1.c, t2.c AS c2, t3.c AS c3 FROM $1 t1 FULL JOIN $2 t2 USING (a) FULL JOIN $3 t3 USING (a)`,
  ),
  construct(
    'keyed',
    'window beside an independent value',
    `SELECT t1.a, rank() OVER (PARTITION BY t1.a ORDER BY t1.b) AS r, (SELECT t2.c FROM $2 t2 ORDER BY t2.c, t2.a LIMIT 1) AS first FROM $1 t1`,
  ),
  construct(
    'keyed',
    'independent value in the argument of an aggregate',
    `SELECT t1.c, sum(t1.a * (SELECT max(a) FROM $2)) AS s FROM $1 t1 GROUP BY t1.c`,
  ),
  construct('keyed', 'full join under groups', `SELECT a, count(t1.b), sum(t2.b) FROM $1 t1 FULL JOIN $2 t2 USING (a) GROUP BY a`),
  construct('keyed', 'natural left join', `SELECT * FROM (SELECT a, b FROM $1) x NATURAL LEFT JOIN (SELECT a, c FROM $2) y`),
  construct(
    'keyed',
    'chain of outer joins',
    `SELECT t1.a, t2.b, t3.c FROM $1 t1 LEFT JOIN $2 t2 ON t2.a = t1.a LEFT JOIN $3 t3 ON t3.${w} = t2.${w}`,
  ),
  construct(
    'keyed',
    'outer join of a join',
    `SELECT t1.a, t2.b, t3.c FROM $1 t1 LEFT JOIN ($2 t2 JOIN $3 t3 ON t3.a = t2.a) ON t2.c = t1.c`,
  ),
  construct(
    'keyed',
    'outer join and a filter on its NULLs',
    `SELECT t1.a, t1.c FROM $1 t1 LEFT JOIN $2 t2 ON t1.a = t2.a WHERE t2.a IS NULL`,
  ),
  construct(
    'keyed',
    'outer join, coalesce in a later condition',
    `SELECT t1.a, t3.c FROM $1 t1 LEFT JOIN $2 t2 ON t2.a = t1.a LEFT JOIN $3 t3 ON t3.${w} = coalesce(t2.${w}, t1.a)`,
  ),
  construct(
    'keyed',
    'groups over an outer join',
    `SELECT t1.a, count(t2.a) AS n, sum(t2.b) AS s FROM $1 t1 LEFT JOIN $2 t2 ON t2.a = t1.a GROUP BY t1.a`,
  ),
  construct(
    'keyed',
    'groups by the optional side',
    `SELECT t2.c, count(*) AS n, max(t1.b) FROM $1 t1 LEFT JOIN $2 t2 ON t2.a = t1.a GROUP BY t2.c`,
  ),
  // t_1 has the key id.
  construct(
    'algebraic',
    'IN over a key',
    `SELECT t.a, t.c, t.b FROM $1 t WHERE t.a IN (SELECT x.id FROM t_1 x WHERE x.b > 1 AND x.c <> 'b')`,
  ),
  construct(
    'keyed',
    'IN over groups beside a key',
    `SELECT t.a, sum(t.b) AS s FROM $1 t, t_1 x WHERE t.a = x.id AND t.a IN (SELECT u.a FROM $2 u GROUP BY u.a HAVING count(*) > 1) GROUP BY t.a`,
  ),
  construct(
    'algebraic',
    'a correlated average for rows that pass filters',
    `SELECT x.id, t.b FROM t_1 x, $2 t WHERE t.a = x.id AND x.c < 'b' AND t.b < (SELECT 1.5 * avg(u.b) FROM $3 u WHERE u.a = x.id)`,
  ),
  construct(
    'algebraic',
    'a correlated sum for rows that refer to others',
    `SELECT x.id, x.b FROM t_1 x, t_1 y WHERE x.a = y.id AND y.c < 'b' AND x.b > (SELECT 0.1 * sum(u.b) FROM $2 u WHERE u.a = x.id AND u.b > 0)`,
  ),
  construct(
    'keyed',
    'a correlated count as a value, for rows that pass filters',
    `SELECT x.id, (SELECT count(*) FROM $2 u WHERE u.a = x.id) AS n FROM t_1 x, t_1 y WHERE x.a = y.id AND y.c < 'b' AND x.b > 1`,
  ),
  construct(
    'keyed',
    'EXISTS and NOT EXISTS of others, beside a key',
    `SELECT x.c, count(*) AS n FROM $1 t, t_1 x WHERE t.a = x.id AND x.c <> 'a' AND t.b > 0 AND EXISTS (SELECT * FROM $2 u WHERE u.a = t.a AND u.c <> t.c) AND NOT EXISTS (SELECT * FROM $2 v WHERE v.a = t.a AND v.c <> t.c AND v.b > 2) GROUP BY x.c`,
  ),
  construct(
    'algebraic',
    'groups by a key over an outer join',
    `SELECT x.id, x.c, count(t.b) AS n, sum(t.b * 2) FILTER (WHERE t.c <> 'a') AS s, avg(t.b + x.b) AS v FROM t_1 x LEFT JOIN $2 t ON t.a = x.id AND x.b > 0 AND t.b < 4 WHERE x.c IS NOT NULL GROUP BY x.id, x.c`,
  ),
  construct(
    'algebraic',
    'groups by a key over a right join with itself',
    `SELECT x.id, count(y.a) AS n FROM t_1 y RIGHT JOIN t_1 x ON y.a = x.id GROUP BY x.id`,
  ),
  construct(
    'keyed',
    'groups by a key over an outer join, counting rows',
    `SELECT x.id, count(*) AS n, count(coalesce(t.a, 0)) AS m FROM t_1 x LEFT JOIN $2 t ON t.a = x.id GROUP BY x.id`,
  ),
  construct(
    'algebraic',
    'sums of a join by several columns, with filters',
    `SELECT t1.c, sum(t2.b) AS s, count(*) AS n FROM $1 t1, $2 t2, $3 t3 WHERE t1.a = t2.a AND t2.c = t3.c AND t2.b = t3.b AND t1.b > 1 AND t3.c <> 'aa' GROUP BY t1.c`,
  ),
  construct(
    'algebraic',
    'sums of a join to constants, with filters on all',
    `SELECT v.x, sum(t1.b) AS s FROM (VALUES (1), (2), (9)) v(x), $1 t1, $2 t2 WHERE t1.a = v.x AND t2.a = t1.a AND v.x < 5 AND t1.b > 0 AND t2.c <> 'a' GROUP BY v.x`,
  ),
  construct(
    'algebraic',
    'sums of a join to what has a key',
    `SELECT y.c, sum(t.b) AS s FROM $1 t JOIN t_1 x ON t.a = x.id AND x.b > 0 JOIN t_1 y ON x.a = y.id WHERE y.c < 'b' AND t.b > 0 GROUP BY y.c`,
  ),
  construct('algebraic', 'histogram', `SELECT q.n, count(*) AS many FROM (SELECT a, count(*) AS n FROM $1 GROUP BY a) q GROUP BY q.n`),
  construct(
    'keyed',
    'histogram over an outer join',
    `SELECT q.n, count(*) AS many FROM (SELECT t1.a, count(t2.a) AS n FROM $1 t1 LEFT JOIN $2 t2 ON t2.a = t1.a GROUP BY t1.a) q GROUP BY q.n`,
  ),
  construct(
    'keyed',
    'EXISTS',
    `SELECT t1.a, t1.u FROM $1 t1 WHERE EXISTS (SELECT 1 FROM $2 t2 WHERE t2.a = t1.a AND t2.b IS NOT NULL LIMIT 1)`,
  ),
  construct(
    'keyed',
    'NOT EXISTS',
    `SELECT t1.a, t1.c FROM $1 t1 WHERE NOT EXISTS (SELECT 1 FROM $2 t2 WHERE t2.a = t1.a AND t2.c <> t1.c)`,
  ),
  construct(
    'keyed',
    'EXISTS and NOT EXISTS',
    `SELECT t1.a, t1.b FROM $1 t1, $3 t3 WHERE t3.a = t1.a AND EXISTS (SELECT FROM $2 t2 WHERE t2.c = t1.c) AND NOT EXISTS (SELECT FROM $2 t4 WHERE t4.a = t3.${w})`,
  ),
  construct('keyed', 'EXISTS without correlation', `SELECT t1.a FROM $1 t1 WHERE EXISTS (SELECT FROM $2 t2 WHERE t2.a = 3)`),
  construct(
    'keyed',
    'EXISTS of a join',
    `SELECT t1.a, t1.c FROM $1 t1 WHERE EXISTS (SELECT FROM $2 t2 JOIN $3 t3 ON t3.c = t2.c WHERE t2.a = t1.a AND t3.b > 1)`,
  ),
  construct(
    'keyed',
    'EXISTS of an outer join',
    `SELECT t1.a, t1.c FROM $1 t1 WHERE EXISTS (SELECT FROM $2 t2 LEFT JOIN $3 t3 ON t3.c = t2.c WHERE t2.a = t1.a AND t3.b IS NULL)`,
  ),
  construct('keyed', 'EXISTS beside OR', `SELECT t1.a, t1.c FROM $1 t1 WHERE t1.b > 2 OR EXISTS (SELECT FROM $2 t2 WHERE t2.c = t1.c)`),
  construct('keyed', 'EXISTS as a value', `SELECT t1.a, EXISTS (SELECT FROM $2 t2 WHERE t2.a = t1.a) AS e FROM $1 t1`),
  construct('keyed', 'IN', `SELECT t1.a, t1.c FROM $1 t1 WHERE t1.a IN (SELECT t2.${w} FROM $2 t2 WHERE t2.b > 0)`),
  construct('keyed', 'IN with two columns', `SELECT t1.a, t1.c FROM $1 t1 WHERE (t1.a, t1.c) IN (SELECT t2.a, t2.c FROM $2 t2)`),
  construct('keyed', 'NOT IN with NULLs', `SELECT t1.a, t1.c FROM $1 t1 WHERE t1.a NOT IN (SELECT t2.${w} FROM $2 t2 WHERE t2.b > 2)`),
  construct(
    'keyed',
    'NOT IN without NULLs',
    `SELECT t1.a, t1.c FROM $1 t1 WHERE t1.a NOT IN (SELECT t2.${w} FROM $2 t2 WHERE t2.${w} IS NOT NULL)`,
  ),
  construct('keyed', 'IN as a value', `SELECT t1.a, t1.a IN (SELECT t2.${w} FROM $2 t2 WHERE t2.b > 2) AS i FROM $1 t1`),
  construct('keyed', 'NOT IN, correlated', `SELECT t1.a, t1.c FROM $1 t1 WHERE t1.a NOT IN (SELECT t2.${w} FROM $2 t2 WHERE t2.c = t1.c)`),
  construct(
    'keyed',
    'IN of groups',
    `SELECT t1.a, t1.c FROM $1 t1 WHERE t1.a IN (SELECT t2.a FROM $2 t2 GROUP BY t2.a HAVING sum(t2.b) > 3)`,
  ),
  construct('keyed', '> ANY', `SELECT t1.a FROM $1 t1 WHERE t1.b > ANY (SELECT t2.b FROM $2 t2 WHERE t2.a = t1.a)`),
  construct('keyed', '>= ALL', `SELECT t1.a, t1.b FROM $1 t1 WHERE t1.b >= ALL (SELECT t2.b FROM $2 t2 WHERE t2.c = 'a')`),
  construct(
    'keyed',
    'scalar subquery, correlated',
    `SELECT t1.a, (SELECT max(t2.b) FROM $2 t2 WHERE t2.a = t1.a) AS best, t1.u FROM $1 t1`,
  ),
  construct(
    'keyed',
    'count of a correlated subquery',
    `SELECT t1.a, (SELECT count(*) FROM $2 t2 WHERE t2.a = t1.a AND t2.c = t1.c) AS n FROM $1 t1`,
  ),
  construct(
    'keyed',
    'comparison with a correlated average',
    `SELECT t1.a, t1.b FROM $1 t1 WHERE t1.b < (SELECT 1.2 * avg(t2.b) FROM $2 t2 WHERE t2.a = t1.a)`,
  ),
  construct(
    'algebraic',
    'comparison with a global average',
    `SELECT t1.a, t1.${w} FROM $1 t1 WHERE t1.${w} < (SELECT avg(t2.a) FROM $2 t2)`,
  ),
  construct(
    'keyed',
    'HAVING over a global scalar',
    `SELECT a, sum(b) AS s FROM $1 GROUP BY a HAVING sum(b) > (SELECT sum(b) * 0.1 FROM $2)`,
  ),
  construct(
    'keyed',
    'threshold beside NOT EXISTS, grouped',
    `SELECT t1.c, count(*) AS n, sum(t1.b) AS s FROM $1 t1 WHERE t1.a > (SELECT avg(a) FROM $3 WHERE a > 0) AND NOT EXISTS (SELECT FROM $2 t2 WHERE t2.a = t1.a) GROUP BY t1.c`,
  ),
  construct(
    'keyed',
    'scalar subquery of one row of a table',
    `SELECT t1.a, (SELECT t2.c FROM $2 t2 ORDER BY t2.a, t2.c, t2.b LIMIT 1) AS first FROM $1 t1`,
  ),
  construct(
    'keyed',
    'grouped over EXISTS',
    `SELECT t1.c, count(*) AS n FROM $1 t1 WHERE EXISTS (SELECT FROM $2 t2 WHERE t2.a = t1.a) GROUP BY t1.c`,
  ),
  construct(
    'keyed',
    'nested subqueries',
    `SELECT t1.a, t1.c FROM $1 t1 WHERE t1.a IN (SELECT t2.a FROM $2 t2 WHERE t2.c IN (SELECT t3.c FROM $3 t3 WHERE t3.b > 1) AND t2.b > (SELECT 0.5 * sum(t4.b) FROM $3 t4 WHERE t4.a = t2.a))`,
  ),
  construct(
    'keyed',
    'subquery in the argument of an aggregate',
    `SELECT t1.c, sum((SELECT count(*) FROM $2 t2 WHERE t2.a = t1.a)) AS s FROM $1 t1 GROUP BY t1.c`,
  ),
  construct(
    'keyed',
    'ARRAY of a subquery',
    `SELECT t1.a, ARRAY(SELECT t2.c FROM $2 t2 WHERE t2.a = t1.a ORDER BY t2.c) AS list FROM $1 t1`,
  ),
  construct(
    'keyed',
    'LATERAL with LIMIT',
    `SELECT t1.a, l.c FROM $1 t1, LATERAL (SELECT t2.c FROM $2 t2 WHERE t2.a = t1.a ORDER BY t2.c LIMIT 2) l`,
  ),
  construct(
    'keyed',
    'LEFT JOIN LATERAL of an aggregate',
    `SELECT t1.a, l.n, l.m FROM $1 t1 LEFT JOIN LATERAL (SELECT count(*) AS n, max(t2.b) AS m FROM $2 t2 WHERE t2.a = t1.a) l ON l.n > 1`,
  ),
  construct('algebraic', 'LATERAL function', `SELECT t1.a, x.n FROM $1 t1, unnest(ARRAY[t1.a, 1]) x(n)`),
  construct(
    'algebraic',
    'function with ordinality',
    `SELECT t1.a, x.n, x.i FROM $1 t1 CROSS JOIN LATERAL unnest(ARRAY[t1.c, 'z']) WITH ORDINALITY x(n, i)`,
  ),
  construct('algebraic', 'function in the target list', `SELECT a, generate_series(1, least(a, 3)) AS g FROM $1`),
  construct(
    'algebraic',
    'groups over a function',
    `SELECT x.n, count(*) AS m FROM $1 t1, generate_series(1, least(t1.a, 4)) x(n) GROUP BY x.n`,
  ),
  construct('keyed', 'left join of a function', `SELECT t1.a, x.n FROM $1 t1 LEFT JOIN LATERAL generate_series(1, t1.a - 2) x(n) ON true`),
  construct('algebraic', 'VALUES', `SELECT v.x, t1.c FROM (VALUES (1, 'one'), (2, 'two')) v(x, y) JOIN $1 t1 ON t1.a = v.x`),
  construct(
    'keyed',
    'VALUES preserved',
    `SELECT v.x, count(t1.a) FROM (VALUES (1), (2), (9)) v(x) LEFT JOIN $1 t1 ON t1.a = v.x GROUP BY v.x`,
  ),
  construct('keyed', 'VALUES with NULL preserved', `SELECT v.x, t1.c FROM (VALUES (1), (NULL), (1)) v(x) LEFT JOIN $1 t1 ON t1.a = v.x`),
  construct('keyed', 'DISTINCT ON', `SELECT DISTINCT ON (a) a, b FROM $1 ORDER BY a, b`),
  construct(
    'keyed',
    'DISTINCT ON, descending',
    `SELECT DISTINCT ON (c, a % 2) c, d, b, a FROM $1 ORDER BY c, a % 2, d DESC NULLS LAST, b, a`,
  ),
  construct('keyed', 'DISTINCT over groups', `SELECT DISTINCT count(*) AS n FROM $1 GROUP BY a`),
  construct('keyed', 'DISTINCT over an outer join', `SELECT DISTINCT t1.a, t2.c FROM $1 t1 LEFT JOIN $2 t2 ON t1.a = t2.a`),
  construct('keyed', 'count(DISTINCT)', `SELECT a, count(DISTINCT c) AS n, count(DISTINCT d) FILTER (WHERE b > 1) AS m FROM $1 GROUP BY a`),
  construct(
    'keyed',
    'windows with one partition',
    `SELECT a, b, rank() OVER (PARTITION BY a ORDER BY b), sum(${w}) OVER (PARTITION BY a) AS s FROM $1`,
  ),
  construct(
    'keyed',
    'windows with two partitions',
    `SELECT t1.a, t1.b, rank() OVER (PARTITION BY t1.c, t1.a ORDER BY t1.b), sum(t1.b) OVER w FROM $1 t1 WINDOW w AS (PARTITION BY t1.a)`,
  ),
  construct(
    'keyed',
    'window over a join',
    `SELECT t1.a, t2.b, rank() OVER (PARTITION BY t2.a ORDER BY t2.b, t1.b) AS r FROM $1 t1 JOIN $2 t2 ON t1.c = t2.c`,
  ),
  construct(
    'keyed',
    'window over an outer join',
    `SELECT t1.a, t2.b, count(*) OVER (PARTITION BY t1.a) AS r FROM $1 t1 LEFT JOIN $2 t2 ON t1.a = t2.a`,
  ),
  construct(
    'keyed',
    'window over groups',
    `SELECT a, c, sum(b) AS s, rank() OVER (PARTITION BY a ORDER BY sum(b) DESC) AS r FROM $1 GROUP BY a, c`,
  ),
  construct('full', 'window over all rows', `SELECT a, b, rank() OVER (ORDER BY a, b) AS r FROM $1`),
  construct('keyed', 'window over all groups', `SELECT a, count(*) AS n, rank() OVER (ORDER BY count(*) DESC) AS r FROM $1 GROUP BY a`),
  construct(
    'keyed',
    'first row of each partition',
    `SELECT q.a, q.b FROM (SELECT a, b, row_number() OVER (PARTITION BY a ORDER BY b, c, d) AS r FROM $1) q WHERE q.r = 1`,
  ),
  construct('keyed', 'UNION', `SELECT a, c FROM $1 UNION SELECT (${w} % 10)::int, c FROM $2`),
  construct('algebraic', 'UNION ALL', `SELECT a, c FROM $1 UNION ALL SELECT a, c FROM $2 UNION ALL SELECT 1, 'x'`),
  construct(
    'algebraic',
    'UNION ALL of different types',
    `SELECT a AS x, c FROM $1 UNION ALL SELECT b, NULL FROM $2 WHERE b > 1 UNION ALL SELECT f::numeric, 'f' FROM $3`,
  ),
  construct('keyed', 'EXCEPT', `SELECT a, d FROM $1 EXCEPT SELECT a, d FROM $2`),
  construct('keyed', 'EXCEPT ALL', `SELECT a, c FROM $1 EXCEPT ALL SELECT a, c FROM $2`),
  construct('keyed', 'INTERSECT', `SELECT a FROM $1 INTERSECT SELECT a FROM $2`),
  construct('keyed', 'INTERSECT ALL', `SELECT a, d FROM $1 INTERSECT ALL SELECT a, d FROM $2`),
  construct(
    'keyed',
    'set operations in each other',
    `(SELECT a FROM $1 UNION ALL SELECT a FROM $2) EXCEPT (SELECT a FROM $3 INTERSECT SELECT a FROM $2)`,
  ),
  construct(
    'keyed',
    'UNION of complex arms',
    `SELECT t1.a, count(*) AS n FROM $1 t1 GROUP BY t1.a UNION SELECT t1.a, 0 FROM $1 t1 WHERE NOT EXISTS (SELECT FROM $2 t2 WHERE t2.a = t1.a)`,
  ),
  construct(
    'keyed',
    'groups over UNION ALL',
    `SELECT q.a, count(*) AS n, sum(q.x) AS s FROM (SELECT a, ${w} AS x FROM $1 UNION ALL SELECT a, a FROM $2) q GROUP BY q.a`,
  ),
  construct('keyed', 'first rows of a table', `SELECT a, b, c FROM $1 ORDER BY a, b, c LIMIT 3`),
  construct('keyed', 'first rows of groups', `SELECT a, count(*) AS n FROM $1 GROUP BY a ORDER BY n DESC, a LIMIT 2 OFFSET 1`),
  construct(
    'keyed',
    'first rows of a join, ordered by what is not shown',
    `SELECT t1.a, t2.c FROM $1 t1 JOIN $2 t2 ON t1.a = t2.a ORDER BY t1.b DESC, t1.a, t2.c, t1.c LIMIT 4`,
  ),
  construct('keyed', 'first rows of a union', `SELECT a, c FROM $1 UNION ALL SELECT a, c FROM $2 ORDER BY a DESC, c LIMIT 5`),
  construct(
    'algebraic',
    'CTE used once',
    `WITH q AS (SELECT a, sum(${w}) AS total FROM $1 GROUP BY a) SELECT q.a, q.total, t.c FROM q JOIN $2 t ON t.a = q.a`,
  ),
  construct(
    'keyed',
    'CTE used twice',
    `WITH q AS (SELECT a, sum(b) AS total FROM $1 GROUP BY a) SELECT q.a, q.total FROM q WHERE q.total = (SELECT max(total) FROM q)`,
  ),
  construct(
    'keyed',
    'CTE of a CTE',
    `WITH q(k, v) AS (SELECT a, b FROM $1 WHERE a > 0), r AS (SELECT k, max(v) AS m FROM q GROUP BY k) SELECT q.k, q.v, r.m FROM q LEFT JOIN r ON r.k = q.k`,
  ),
  construct(
    'full',
    'recursive CTE',
    `WITH RECURSIVE r(n) AS (SELECT min(a) FROM $1 UNION SELECT r.n + 1 FROM r WHERE r.n < 4) SELECT n FROM r`,
  ),
  construct(
    'full',
    'recursive CTE over a table',
    `WITH RECURSIVE r(n, c) AS (SELECT a, c FROM $1 WHERE b IS NULL UNION SELECT t.a, t.c FROM r JOIN $2 t ON t.${w} = r.n) SELECT n, c FROM r`,
  ),
  construct('keyed', 'GROUPING SETS', `SELECT a, c, sum(${w}), grouping(a) AS g FROM $1 GROUP BY GROUPING SETS ((a), (c), ())`),
  construct('keyed', 'ROLLUP', `SELECT a, d, count(*) AS n, grouping(a, d) AS g FROM $1 GROUP BY ROLLUP (a, d)`),
  construct('keyed', 'CUBE beside a plain key', `SELECT a, c, d, max(b) AS m FROM $1 GROUP BY a, CUBE (c, d) HAVING count(*) > 0`),
  construct(
    'algebraic',
    'join with groups',
    `SELECT q.a, q.n, t.b FROM (SELECT a, count(*) AS n FROM $1 GROUP BY a) q, $2 t WHERE t.a = q.a`,
  ),
  construct(
    'keyed',
    'left join of groups',
    `SELECT t.a, t.c, q.n FROM $2 t LEFT JOIN (SELECT a, count(*) AS n FROM $1 GROUP BY a) q ON q.a = t.a`,
  ),
  construct(
    'algebraic',
    'groups of groups',
    `SELECT q.n, sum(q.s) AS s, count(*) AS m FROM (SELECT a, c, count(*) AS n, sum(${w}) AS s FROM $1 GROUP BY a, c) q GROUP BY q.n`,
  ),
  construct('full', 'string_agg without groups', `SELECT sum(f), string_agg(c, '' ORDER BY c) FROM $1`),
  construct('algebraic', 'HAVING without groups', `SELECT count(*) FROM $1 HAVING count(*) > 3`),
  construct(
    'keyed',
    'ordered-set aggregates',
    `SELECT a, percentile_cont(0.5) WITHIN GROUP (ORDER BY f) AS p, mode() WITHIN GROUP (ORDER BY c) AS m FROM $1 GROUP BY a`,
  ),
  construct(
    'keyed',
    'all kinds of aggregates',
    `SELECT a, array_agg(c ORDER BY c) AS l, bool_or(b > 1) AS o, stddev(${w}) AS s, jsonb_object_agg(coalesce(c, ''), a ORDER BY b, c) AS j, string_agg(c, ',' ORDER BY c) AS t FROM $1 GROUP BY a`,
  ),
  construct(
    'algebraic',
    'json, arrays and ranges',
    `SELECT jsonb_build_object('a', a, 'c', c) -> 'c' AS j, ARRAY[a, 1] || 2 AS l, numrange(0, abs(b), '[]') @> 1.0 AS r FROM $1 WHERE b <> 'NaN'`,
  ),
  construct(
    'keyed',
    'aggregate over a scalar subquery',
    `SELECT max(q.n) AS m, count(*) AS c FROM (SELECT t1.a, (SELECT count(*) FROM $2 t2 WHERE t2.a = t1.a) AS n FROM $1 t1) q`,
  ),
  construct(
    'keyed',
    'same relation on all sides',
    `SELECT t1.a, t2.c FROM $1 t1 LEFT JOIN $1 t2 ON t2.a = t1.${w} WHERE NOT EXISTS (SELECT FROM $1 t3 WHERE t3.c = t1.c AND t3.a > t1.a)`,
  ),
  construct(
    'keyed',
    'shared stages in two places',
    `WITH n AS (SELECT a, count(*) AS n FROM $1 GROUP BY a) SELECT x.a, x.n, y.n AS other FROM n x LEFT JOIN n y ON y.a = x.n`,
  ),
];
