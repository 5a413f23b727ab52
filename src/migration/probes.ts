/**
 * Types and expressions of a migration, judged by Postgres itself: a column GENERATED ALWAYS AS must be immutable, of one row, and of its type.
 * Invariant: everything runs as the caller, in a subtransaction that is rolled back whatever comes out; an error there is an answer.
 */
import { parseSql } from '../sql/postgres-parser.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import type { AlterDefinition, SourceColumn, SourceTable, SplitDefinition } from './model.ts';

/** One statement as the caller; all of them in one transaction. */
export type RunAsCaller = (sql: string) => Promise<readonly (readonly (string | null)[])[]>;

export interface ProbeProblem {
  readonly code: string;
  readonly message: string;
  readonly detail: string;
  readonly hint: string;
}

export interface ProbedExpression {
  /** Of the column it was to fill, as format_type prints it. */
  readonly type: string;
  /** As Postgres prints it when nothing but pg_catalog is on search_path. */
  readonly text: string;
  readonly columns: readonly string[];
  /** Functions and operators outside pg_catalog. */
  readonly outside: readonly string[];
}

export type Probed = { readonly value: ProbedExpression } | { readonly problem: ProbeProblem };

export interface RoundTrip {
  /** Looked at. */
  readonly rows: number;
  /** Whose old values would not come back. */
  readonly changed: number;
  /** Whose new values would not come back from the old ones made of them. */
  readonly unstable: number;
  /** Key of one of either. */
  readonly example: string | null;
}

/** Runs statements that give `answer` a value, and undoes them. */
async function tryOut<T>(run: RunAsCaller, steps: readonly string[]): Promise<{ readonly value: T } | { readonly problem: ProbeProblem }> {
  const body = `
DECLARE
  answer pg_catalog.jsonb; c text; m text; d text; h text;
BEGIN
  BEGIN
    ${steps.join(';\n    ')};
    RAISE SQLSTATE 'MR000';
  EXCEPTION
    WHEN SQLSTATE 'MR000' THEN
      answer := pg_catalog.jsonb_build_object('value', answer);
    WHEN OTHERS THEN
      GET STACKED DIAGNOSTICS c = RETURNED_SQLSTATE, m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
      answer := pg_catalog.jsonb_build_object('problem', pg_catalog.jsonb_build_object('code', c, 'message', m, 'detail', d, 'hint', h));
  END;
  PERFORM pg_catalog.set_config('millrace.answer', answer::pg_catalog.text, true);
END`;
  await run(`DO LANGUAGE plpgsql ${quoteLiteral(body)}`);
  const [row] = await run("SELECT pg_catalog.current_setting('millrace.answer')");
  return JSON.parse(row?.[0] ?? 'null');
}

const execute = (sql: string): string => `EXECUTE ${quoteLiteral(sql)}`;

/** What Postgres makes of an expression over `columns` for a column of type `type`. */
export async function probeExpression(
  run: RunAsCaller,
  columns: readonly { readonly name: string; readonly type: string }[],
  type: string,
  expression: string,
): Promise<Probed> {
  const unreadable = notOneType(type) ?? notOneExpression(expression);
  if (unreadable !== null) return { problem: unreadable };
  const list = [
    ...columns.map((column) => `${quoteIdentifier(column.name)} ${column.type}`),
    `millrace_result ${type} GENERATED ALWAYS AS (${expression}\n) STORED`,
    // Postgres looks for functions that are not immutable before it adds the cast to the column's type.
    `millrace_cast ${type} GENERATED ALWAYS AS (${cast(expression, type)}) STORED`,
  ];
  return await tryOut<ProbedExpression>(run, [
    execute(`CREATE TEMPORARY TABLE millrace_probe (${list.join(', ')})`),
    "PERFORM pg_catalog.set_config('search_path', 'pg_catalog', true)",
    `${execute(probedSql)} INTO answer`,
  ]);
}

const probedSql = `
SELECT jsonb_build_object(
         'type', format_type(g.atttypid, g.atttypmod) ||
                 CASE WHEN g.attcollation NOT IN (0, ty.typcollation) THEN (SELECT format(' COLLATE %I.%I', n.nspname, co.collname)
                   FROM pg_collation co JOIN pg_namespace n ON n.oid = co.collnamespace WHERE co.oid = g.attcollation) ELSE '' END,
         'text', pg_get_expr(ad.adbin, ad.adrelid),
         'columns', (SELECT coalesce(jsonb_agg(DISTINCT a.attname), '[]') FROM uses d JOIN pg_attribute a ON a.attrelid = g.attrelid AND a.attnum = d.refobjsubid
                      WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = g.attrelid AND a.attnum <> g.attnum),
         'outside', (SELECT coalesce(jsonb_agg(DISTINCT x.name), '[]') FROM uses d, LATERAL (
                        SELECT p.oid::regprocedure::text FROM pg_proc p WHERE d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid AND p.pronamespace <> 'pg_catalog'::regnamespace
                        UNION ALL
                        SELECT o.oid::regoperator::text FROM pg_operator o WHERE d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid AND o.oprnamespace <> 'pg_catalog'::regnamespace
                      ) AS x(name)))
  FROM pg_attribute g JOIN pg_type ty ON ty.oid = g.atttypid JOIN pg_attrdef ad ON ad.adrelid = g.attrelid AND ad.adnum = g.attnum
 WHERE g.attrelid = 'pg_temp.millrace_probe'::regclass AND g.attname = 'millrace_result'`.replaceAll(
  'uses d',
  `(SELECT u.* FROM pg_depend u WHERE (u.classid = 'pg_attrdef'::regclass AND u.objid = ad.oid)
      OR (u.classid = 'pg_class'::regclass AND u.objid = g.attrelid AND u.objsubid = g.attnum)) d`,
);

/** Null when the text is one expression, and nothing else. */
function notOneExpression(text: string): ProbeProblem | null {
  return parseProblem(`SELECT (${text}\n)`, () => true);
}

function notOneType(text: string): ProbeProblem | null {
  return parseProblem(`CREATE TABLE x (c ${text}\n)`, (tree) => {
    const elements = fields(fields(tree)['CreateStmt'])['tableElts'];
    const [only, ...more] = Array.isArray(elements) ? elements : [];
    return more.length === 0 && !('constraints' in fields(fields(only)['ColumnDef']));
  });
}

function parseProblem(sql: string, isRight: (tree: unknown) => boolean): ProbeProblem | null {
  const problem = { code: '42601', detail: '', hint: '' };
  try {
    const { stmts } = parseSql(sql);
    return stmts?.length === 1 && isRight(stmts[0]?.stmt) ? null : { ...problem, message: 'a type is expected' };
  } catch (error) {
    return { ...problem, message: error instanceof Error ? error.message : String(error) };
  }
}

const fields = (value: unknown): Record<string, unknown> => (typeof value === 'object' && value !== null ? { ...value } : {});

/** What can be looked at without making anyone wait. */
const sampleRows = 5000;

/**
 * Whether the values of a sample of rows come back: old ones by way of the new, and new ones by way of the old. A value that cannot be converted at all
 * is the problem.
 */
export async function tryRoundTrip(
  run: RunAsCaller,
  source: SourceTable,
  definition: AlterDefinition | SplitDefinition,
  rowsEstimate: number,
): Promise<{ readonly value: RoundTrip } | { readonly problem: ProbeProblem }> {
  return await tryOut<RoundTrip>(run, [`${execute(roundTripSql(source, definition, rowsEstimate))} INTO answer`]);
}

/** A column of either shape, and what it is made of in the other. */
interface Made {
  readonly name: string;
  readonly expression: string;
  /** Its value is not just the other's. */
  readonly changes: boolean;
}

/** Columns of the new shape over the old, and of the old over the new. */
export function shapesOf(
  columns: readonly SourceColumn[],
  definition: AlterDefinition | SplitDefinition,
): { readonly up: readonly Made[]; readonly down: readonly Made[] } {
  const same = ({ name }: SourceColumn): Made => ({ name, expression: quoteIdentifier(name), changes: false });
  if (definition.kind === 'split') {
    const kept = columns.filter(({ name }) => name !== definition.column);
    const type = columns.find(({ name }) => name === definition.column)?.type ?? 'text';
    return {
      up: [...kept.map(same), ...definition.into.map((one) => ({ name: one.name, expression: cast(one.up, one.type), changes: true }))],
      down: columns.map((column) =>
        column.name === definition.column ? { name: column.name, expression: cast(definition.down, type), changes: true } : same(column),
      ),
    };
  }
  const made = (direction: 'up' | 'down'): Made[] =>
    columns.map((column) => {
      const change = definition.columns.find((one) => one.column === column.name);
      if (change === undefined) return same(column);
      const expression = change[direction] ?? quoteIdentifier(column.name);
      return { name: column.name, expression: cast(expression, direction === 'up' ? change.type : column.type), changes: true };
    });
  return { up: made('up'), down: made('down') };
}

/** Types may name a collation, which CAST does not take. */
const cast = (expression: string, type: string): string => `CAST((${expression}\n) AS ${type.replace(/ COLLATE .*$/is, '')})`;

function roundTripSql(source: SourceTable, definition: AlterDefinition | SplitDefinition, rowsEstimate: number): string {
  const { up, down } = shapesOf(source.columns, definition);
  // Names with a blank: none of a user's own looks like them.
  const carried = (made: readonly Made[], as: string): string[] =>
    made.map(({ name }, i) => `${quoteIdentifier(name)} AS "millrace ${as}${i}"`);
  const remade = (made: readonly Made[]): string[] => made.map(({ name, expression }) => `${expression} AS ${quoteIdentifier(name)}`);
  const kept = (made: readonly Made[], as: string): string[] => made.map((_, i) => `"millrace ${as}${i}"`);
  const differs = (made: readonly Made[], before: string): string =>
    made
      .map(({ name, changes }, i) => (changes ? `"millrace ${before}${i}"::text IS DISTINCT FROM ${quoteIdentifier(name)}::text` : null))
      .filter((one) => one !== null)
      .join(' OR ');
  const percent = (100 * sampleRows) / Math.max(rowsEstimate, 1);
  const sample = percent < 50 ? ` TABLESAMPLE SYSTEM (${percent.toFixed(6)})` : '';
  const table = `${quoteIdentifier(source.schema)}.${quoteIdentifier(source.name)}`;
  const key = source.key.map((name) => `${quoteLiteral(`${name}=`)} || ${quoteIdentifier(name)}::text`).join(" || ', ' || ");
  const rows = `SELECT ${source.columns.map(({ name }) => quoteIdentifier(name)).join(', ')} FROM ${table}${sample} LIMIT ${sampleRows}`;
  const first = `SELECT ${[...remade(up), ...carried(down, 's'), `${key === '' ? "''" : key} AS "millrace key"`].join(', ')} FROM (${rows}) AS r`;
  const second = `SELECT ${[...remade(down), ...carried(up, 't'), ...kept(down, 's'), '"millrace key"'].join(', ')} FROM (${first}) AS r`;
  const third = `SELECT ${[...remade(up), ...kept(up, 't'), `(${differs(down, 's')}) AS "millrace changed"`, '"millrace key"'].join(', ')} FROM (${second}) AS r`;
  const last = `SELECT "millrace changed" AS changed, (${differs(up, 't')}) AS unstable, "millrace key" AS key FROM (${third}) AS r`;
  return `SELECT pg_catalog.jsonb_build_object('rows', count(*), 'changed', count(*) FILTER (WHERE changed), 'unstable', count(*) FILTER (WHERE unstable),
            'example', min(key) FILTER (WHERE changed OR unstable)) FROM (${last}) AS r`;
}
