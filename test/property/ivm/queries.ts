/** Random queries over the tables of the property test: every construct that has a way of its own, and those that have none. */
import { constructs } from './constructs.ts';
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
    listed,
    listed,
    composed,
    composed,
    composed,
    composed,
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

/** One of the constructs. */
function listed(random: Random, relations: readonly string[]): RandomQuery {
  const { sql, exact } = random.pick(constructs);
  const chosen = [random.pick(relations), random.pick(relations), random.pick(relations)];
  return { sql: sql.replace(/\$(\d)/g, (_, n: string) => chosen[Number(n) - 1] ?? ''), exact: exact !== false };
}

const five = (alias: string): string => ['a', 'b', 'c', 'd', weird].map((column) => `${alias}.${column}`).join(', ');

/** Something to select from with the columns a, b, c, d and "Weird ""col", whose equal values look the same. */
function source(random: Random, relations: readonly string[], depth: number): string {
  if (depth === 0 || random.chance(0.35)) return random.pick(relations);
  const inner = (): string => source(random, relations, depth - 1);
  const sql = random.pick([
    () => `SELECT ${five('x')} FROM ${inner()} x ${filter(random, relations, ['x'], depth)}`,
    () => `SELECT x.a, sum(x.b) AS b, min(x.c) AS c, max(x.d) AS d, count(*) AS ${weird} FROM ${inner()} x GROUP BY x.a`,
    () => `SELECT x.a, max(x.b) AS b, x.c, min(x.d) AS d, sum(x.a) AS ${weird} FROM ${inner()} x GROUP BY x.c, x.a HAVING count(*) > 1`,
    () => `SELECT ${five('x')} FROM ${inner()} x ${random.pick(setOperators)} SELECT ${five('y')} FROM ${inner()} y`,
    () => `SELECT DISTINCT ${five('x')} FROM ${inner()} x`,
    () => `SELECT ${five('x')} FROM ${inner()} x ORDER BY ${five('x')} LIMIT ${1 + random.int(8)}`,
    () => `SELECT x.a, y.b, x.c, y.d, y.${weird} FROM ${joinOf(random, inner(), inner())} ${filter(random, relations, ['x', 'y'], depth)}`,
    () =>
      `SELECT x.a, x.b, x.c, x.d, rank() OVER (PARTITION BY x.${random.pick(['a', 'c'])} ORDER BY x.d, x.b) AS ${weird} FROM ${inner()} x`,
    () => `SELECT DISTINCT ON (x.c) ${five('x')} FROM ${inner()} x ORDER BY x.c, ${five('x')}`,
    () =>
      `SELECT x.a, (SELECT max(z.b) FROM ${inner()} z WHERE z.a = x.a) AS b, x.c, x.d, (SELECT count(*) FROM ${random.pick(relations)} z WHERE z.c = x.c) AS ${weird} FROM ${inner()} x`,
    () => {
      const [outer, join, on] = [inner(), ...random.pick([['CROSS', ''] as const, ['LEFT', 'ON true'] as const])];
      return `SELECT x.a, l.b, x.c, l.d, x.${weird} FROM ${outer} x ${join} JOIN LATERAL (SELECT z.b, z.d FROM ${random.pick(relations)} z WHERE z.a = x.a ORDER BY z.b, z.d LIMIT 1) l ${on}`;
    },
  ])();
  return `(${sql})`;
}

const setOperators = ['UNION', 'UNION ALL', 'EXCEPT', 'EXCEPT ALL', 'INTERSECT', 'INTERSECT ALL'];

function joinOf(random: Random, left: string, right: string): string {
  const column = random.pick(['a', 'c', weird]);
  const kind = random.pick(['JOIN', 'LEFT JOIN', 'LEFT JOIN', 'RIGHT JOIN', 'FULL JOIN']);
  const more = kind !== 'FULL JOIN' && random.chance(0.4) ? random.pick([' AND y.b > 1', ' AND x.b >= y.b', ' AND y.d IS NOT NULL']) : '';
  return `${left} x ${kind} ${right} y ON x.${column} = y.${column}${more}`;
}

function filter(random: Random, relations: readonly string[], aliases: readonly string[], depth: number): string {
  const condition = (): string => {
    const t = random.pick(aliases);
    const other = (): string => `${source(random, relations, depth - 1)} z`;
    const k = random.pick(['a', 'c', weird]);
    return random.pick([
      () => `${t}.a > ${random.int(4)}`,
      () => `${t}.b IS NULL OR ${t}.c <> 'a'`,
      () =>
        `${random.pick(['', 'NOT '])}EXISTS (SELECT FROM ${other()} WHERE z.${k} = ${t}.${k}${random.pick(['', ' AND z.b > 1', ` AND z.d <> ${t}.d`])})`,
      () => `${t}.${k} ${random.pick(['', 'NOT '])}IN (SELECT z.${k} FROM ${other()} WHERE z.b > ${random.int(3)})`,
      () => `${t}.b > (SELECT avg(z.a) FROM ${other()} WHERE z.${k} = ${t}.${k})`,
      () => `${t}.a >= (SELECT avg(z.a) FROM ${other()})`,
      () => `(SELECT count(*) FROM ${other()} WHERE z.a = ${t}.a) < 3`,
      () => `${t}.b <= ALL (SELECT z.b FROM ${other()} WHERE z.c = ${t}.c)`,
    ])();
  };
  const conditions = Array.from({ length: random.int(3) }, () => `(${condition()})`);
  return conditions.length === 0 ? '' : `WHERE ${conditions.join(' AND ')}`;
}

/** Constructs in each other. */
function composed(random: Random, relations: readonly string[]): RandomQuery {
  const depth = 1 + random.int(2);
  const top = random.pick([
    () => `SELECT ${five('q')} FROM ${source(random, relations, depth)} q`,
    () =>
      `SELECT q.c, count(*) AS n, sum(q.a) AS s, max(q.d) AS m FROM ${source(random, relations, depth)} q ${filter(random, relations, ['q'], 1)} GROUP BY q.c`,
    () => `SELECT count(*) AS n, sum(q.a) AS s, min(q.b) AS m FROM ${source(random, relations, depth)} q`,
    () => `SELECT q.a, r.c, q.b FROM ${source(random, relations, depth)} q JOIN ${source(random, relations, 1)} r ON r.a = q.a`,
    () =>
      `WITH w AS (SELECT ${five('q')} FROM ${source(random, relations, depth)} q) SELECT x.a, y.b, x.d FROM w x LEFT JOIN w y ON y.a = x.${weird}`,
    () => `SELECT q.a, q.c, count(*) AS n FROM ${source(random, relations, 1)} q GROUP BY ROLLUP (q.a, q.c)`,
  ])();
  return { sql: top, exact: true };
}
