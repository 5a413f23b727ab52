/** Random queries over the tables of the property test: every construct that has a way of its own, and those that have none. */
import type { Random } from './random.ts';

export interface RandomQuery {
  readonly sql: string;
  /** False: rows that are equal but look different may be shown either way, also by Postgres. */
  readonly exact: boolean;
}

/** A relation with the columns that all test relations share, by meaning. */
interface Item {
  readonly alias: string;
  readonly from: string;
}

const weird = '"Weird ""col"';
const plainColumns = ['a', 'b', 'c', 'd', weird] as const;

export function randomQuery(random: Random, relations: readonly string[]): RandomQuery {
  const kinds = [
    rows,
    rows,
    wide,
    nested,
    aggregate,
    aggregate,
    aggregate,
    extremes,
    extremes,
    recomputed,
    recomputed,
    distinct,
    whole,
    whole,
  ];
  return random.pick(kinds)(random, relations);
}

function item(random: Random, relations: readonly string[], alias: string): Item {
  return { alias, from: `${random.pick(relations)} ${alias}` };
}

/** A join of one to three relations with its FROM text. */
function join(random: Random, relations: readonly string[], most = 3): { readonly from: string; readonly aliases: string[] } {
  const count = random.pick([1, 1, 2, 2, 3].filter((n) => n <= most));
  const items = Array.from({ length: count }, (_, i) => item(random, relations, `t${i + 1}`));
  const aliases = items.map(({ alias }) => alias);
  const [first, second, third] = items;
  if (first === undefined) throw new RangeError('no relation');
  if (second === undefined) return { from: first.from, aliases };
  const column = random.pick(['a', 'c', weird]);
  const two = random.pick([
    `${first.from} JOIN ${second.from} ON t1.${column} = t2.${column}`,
    `${first.from} JOIN ${second.from} USING (${column})`,
    `${first.from} INNER JOIN (SELECT t.a, t.b, t.c, t.d, t.${weird}, t.f, t.u FROM ${random.pick(relations)} t WHERE t.a > 0) t2 ON t1.a = t2.a`,
    `${first.from} CROSS JOIN ${random.pick(relations)} t2`,
  ]);
  if (third === undefined) return { from: two, aliases };
  return { from: `(${two}) JOIN ${third.from} ON t3.a = t1.a AND t3.${weird} > t2.${weird}`, aliases };
}

function condition(random: Random, aliases: readonly string[]): string {
  const t = random.pick(aliases);
  return random.pick([
    '',
    '',
    `WHERE ${t}.a > ${random.int(4)}`,
    `WHERE ${t}.c LIKE '%a%' OR ${t}.b IS NULL`,
    `WHERE ${t}.d IS DISTINCT FROM DATE '2024-01-02' AND ${t}.${weird} <> 1`,
    `WHERE (${t}.a, ${t}.c) IN ((1, 'a'), (2, 'b'), (3, 'aa'))`,
    `WHERE ${t}.b BETWEEN 1 AND 3 AND NOT (${t}.f > 1.5)`,
  ]);
}

function scalar(random: Random, aliases: readonly string[]): string {
  const t = random.pick(aliases);
  return random.pick([
    ...plainColumns.map((column) => `${t}.${column}`),
    `${t}.f`,
    `${t}.u`,
    `${t}.a + ${t}.${weird}`,
    `upper(${t}.c) || '-''é'`,
    `CASE WHEN ${t}.a > 2 THEN ${t}.b ELSE 0 END`,
    `${t}.d + INTERVAL '1 day 02:03:04'`,
    `${t}.b::numeric(12,4)`,
    `coalesce(${t}.c, 'none')::varchar(7) COLLATE "C"`,
    `extract(year FROM ${t}.d)`,
    `'x'::text`,
    `${t}.a IS NOT DISTINCT FROM ${t}.${weird}`,
  ]);
}

function named(expressions: readonly string[]): string {
  return expressions.map((text, i) => `${text} AS ${i === 1 ? '"out ""2"' : `o${i + 1}`}`).join(', ');
}

function rows(random: Random, relations: readonly string[]): RandomQuery {
  const { from, aliases } = join(random, relations);
  const outputs = Array.from({ length: 1 + random.int(4) }, () => scalar(random, aliases));
  return { sql: `SELECT ${named(outputs)} FROM ${from} ${condition(random, aliases)}`, exact: true };
}

/** More relations than get a term for each subset of changed ones. */
function wide(random: Random, relations: readonly string[]): RandomQuery {
  const count = 4 + random.int(2);
  const items = Array.from({ length: count }, (_, i) => item(random, relations, `t${i + 1}`));
  const links = items.slice(1).map((_, i) => `t${i + 2}.a = t1.a AND t${i + 2}.c = t1.c AND t${i + 2}.b = t1.b`);
  const from = `${items.map((entry) => entry.from).join(', ')} WHERE ${links.join(' AND ')}`;
  const sql = random.pick([
    `SELECT t1.a, t${count}.d, t2.u FROM ${from}`,
    `SELECT t1.c, count(*) AS n, sum(t${count}.b) AS total, max(t2.a) AS most FROM ${from} GROUP BY t1.c`,
    `SELECT t1.c, array_agg(t2.a ORDER BY t2.a) AS list FROM ${from} GROUP BY t1.c`,
  ]);
  return { sql, exact: true };
}

function nested(random: Random, relations: readonly string[]): RandomQuery {
  const inner = join(random, relations, 2);
  const outer = item(random, relations, 'x');
  const sql = `SELECT q.k, q.v, x.c FROM (SELECT ${scalar(random, inner.aliases)} AS v, t1.a AS k FROM ${inner.from} ${condition(random, inner.aliases)}) q, ${outer.from} WHERE q.k = x.a`;
  return { sql, exact: true };
}

function groupKey(random: Random, aliases: readonly string[]): string {
  const t = random.pick(aliases);
  return random.pick([`${t}.a`, `${t}.c`, `${t}.b`, `${t}.d`, `(${t}.a % 2)`, `lower(${t}.c)`, `date_trunc('month', ${t}.d)`]);
}

function groupedSelect(random: Random, relations: readonly string[], calls: readonly string[], having = ''): string {
  const { from, aliases } = join(random, relations, 2);
  const t = random.pick(aliases);
  const groups = random
    .some([groupKey(random, aliases), groupKey(random, aliases)], random.int(3))
    .filter((g, i, all) => all.indexOf(g) === i);
  const filled = calls.map((call) => call.replaceAll('$', t));
  const decorated = groups.length > 0 && random.chance(0.3) ? [`coalesce((${groups[0]})::text, 'null')`] : [];
  const outputs = [...(random.chance(0.8) ? groups : []), ...decorated, ...filled];
  const by = groups.length === 0 ? '' : `GROUP BY ${groups.join(', ')}`;
  return `SELECT ${named(outputs)} FROM ${from} ${condition(random, aliases)} ${by} ${having.replaceAll('$', t)}`;
}

const linear = [
  'count(*)',
  'count($.b)',
  'sum($.a)',
  'avg($.a)',
  'sum($.b)',
  'avg($.b)',
  `sum($.${weird})`,
  `avg($.${weird})`,
  `count(*) FILTER (WHERE $.c > 'a')`,
  `sum($.b) FILTER (WHERE $.a > 1)`,
  `avg($.b * (1 - $.b))`,
  'sum(CASE WHEN $.a > 2 THEN $.b * $.b ELSE 0 END)',
  'round(avg($.b), 2) + count(*)',
  'sum($.a) + 1',
  `CASE WHEN count($.a) > 2 THEN sum($.b) / nullif(sum($.a), 0) END`,
];
const extreme = [
  'min($.a)',
  'max($.b)',
  'min($.c)',
  'max($.d)',
  `max($.${weird})`,
  'min($.b) FILTER (WHERE $.a > 1)',
  'max($.a) - min($.a)',
];
const other = [
  'sum($.f)',
  'avg($.f)',
  'sum($.u)',
  'avg($.u)',
  `string_agg($.c, ',' ORDER BY $.c)`,
  'array_agg($.a ORDER BY $.a)',
  'bool_and($.a > 1)',
  'count(DISTINCT $.c)',
  'sum(DISTINCT $.a)',
  'stddev($.a)',
  'percentile_disc(0.5) WITHIN GROUP (ORDER BY $.a)',
  `min($.d - DATE '2024-01-01')`,
];

function aggregate(random: Random, relations: readonly string[]): RandomQuery {
  return { sql: groupedSelect(random, relations, random.some(linear, 1 + random.int(4))), exact: true };
}

function extremes(random: Random, relations: readonly string[]): RandomQuery {
  const calls = [...random.some(extreme, 1 + random.int(3)), ...random.some(linear, random.int(3))];
  return { sql: groupedSelect(random, relations, calls), exact: true };
}

function recomputed(random: Random, relations: readonly string[]): RandomQuery {
  const calls = [...random.some(other, 1 + random.int(2)), ...random.some(linear, random.int(2)), ...random.some(extreme, random.int(2))];
  const having = random.chance(0.4) ? random.pick(['HAVING count(*) > 1', 'HAVING sum($.a) > 3 AND min($.b) IS NOT NULL']) : '';
  // HAVING without anything else makes a linear query keyed.
  const sql = groupedSelect(random, relations, having !== '' && random.chance(0.5) ? random.some(linear, 2) : calls, having);
  return { sql, exact: true };
}

function distinct(random: Random, relations: readonly string[]): RandomQuery {
  const { from, aliases } = join(random, relations, 2);
  const outputs = Array.from({ length: 1 + random.int(3) }, () => scalar(random, aliases));
  // 0 and 0.00, 0.0 and -0.0 are one group; which of them is shown is open.
  const loose = outputs.some((text) => /\.[uf]$|^CASE/.test(text));
  return { sql: `SELECT DISTINCT ${named(outputs)} FROM ${from} ${condition(random, aliases)}`, exact: !loose };
}

function whole(random: Random, relations: readonly string[]): RandomQuery {
  const one = random.pick(relations);
  const two = random.pick(relations);
  const sql = random.pick([
    `SELECT t1.a, t1.c, t2.b, t2.f FROM ${one} t1 LEFT JOIN ${two} t2 ON t1.a = t2.a AND t2.b > 1`,
    `SELECT t1.*, t2.c AS c2 FROM (SELECT a, c AS x FROM ${one}) t1 FULL JOIN (SELECT c, a FROM ${two}) t2 USING (a)`,
    `SELECT t1.a, t1.u FROM ${one} t1 WHERE EXISTS (SELECT 1 FROM ${two} t2 WHERE t2.a = t1.a AND t2.b IS NOT NULL LIMIT 1)`,
    `SELECT t1.a, t1.c FROM ${one} t1 WHERE t1.a NOT IN (SELECT t2.${weird} FROM ${two} t2 WHERE t2.${weird} IS NOT NULL)`,
    `SELECT t1.a, t1.b, rank() OVER (PARTITION BY t1.c ORDER BY t1.a), sum(t1.b) OVER w FROM ${one} t1 WINDOW w AS (PARTITION BY t1.a)`,
    `SELECT a, c FROM ${one} UNION SELECT (${weird} % 10)::int, c FROM ${two}`,
    `SELECT a, c FROM ${one} UNION ALL SELECT a, c FROM ${two}`,
    `SELECT a, d FROM ${one} EXCEPT SELECT a, d FROM ${two}`,
    `SELECT a, b FROM ${one} INTERSECT ALL SELECT a, b FROM ${two}`,
    `WITH q AS (SELECT a, sum(b) AS total FROM ${one} GROUP BY a) SELECT q.a, q.total, t.c FROM q JOIN ${two} t ON t.a = q.a`,
    `SELECT a, b, c FROM ${one} ORDER BY a, b, c LIMIT 3`,
    `SELECT a, c, sum(b), grouping(a) FROM ${one} GROUP BY GROUPING SETS ((a), (c), ())`,
    `SELECT t1.a, (SELECT max(t2.b) FROM ${two} t2 WHERE t2.a = t1.a) AS best, t1.u FROM ${one} t1`,
    `SELECT t1.a, l.c FROM ${one} t1, LATERAL (SELECT t2.c FROM ${two} t2 WHERE t2.a = t1.a ORDER BY t2.c LIMIT 2) l`,
    `SELECT DISTINCT ON (a) a, b FROM ${one} ORDER BY a, b`,
    `SELECT q.a, q.n, t.b FROM (SELECT a, count(*) AS n FROM ${one} GROUP BY a) q, ${two} t WHERE t.a = q.a`,
    `SELECT sum(f), string_agg(c, '' ORDER BY c) FROM ${one}`,
    `SELECT count(*) FROM ${one} HAVING count(*) > 3`,
    `SELECT a, generate_series(1, least(a, 3)) AS g FROM ${one}`,
    `SELECT DISTINCT count(*) AS n FROM ${one} GROUP BY a`,
    `WITH RECURSIVE r(n) AS (SELECT min(a) FROM ${one} UNION SELECT r.n + 1 FROM r WHERE r.n < 4) SELECT n FROM r`,
    `SELECT t1.a, x.n FROM ${one} t1, unnest(ARRAY[t1.a, 1]) x(n)`,
    `SELECT v.x, count(t1.a) FROM (VALUES (1), (2)) v(x) LEFT JOIN ${one} t1 ON t1.a = v.x GROUP BY v.x`,
  ]);
  return { sql, exact: true };
}
