/**
 * PARTITION BY: an expression over a row that says which partition its message goes to.
 * Invariant: what is stored is the expression as Postgres prints it, of type bigint, immutable, over the columns it may use, and calls nobody's
 * code with Millrace's rights. Postgres is the judge: it is made the expression of an index of an empty temporary table.
 */
import { MillraceError, millraceError } from '../errors.ts';
import { type Fields, isFields, kindOf, list, node, strings, walk } from '../ivm/tree.ts';
import { loadPostgresParser, parseSql } from '../sql/postgres-parser.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { type CallerSession, UpstreamError } from './caller-session.ts';
import { type CallerRole, firstRow, perform, type StatementContext } from './context.ts';
import type { SinkRelation } from './sink-relation.ts';
import { functionsOfView } from './view-functions.ts';

const scratch = 'pg_temp.millrace_partition';
const scratchView = 'pg_temp.millrace_partition_view';

export interface GivenExpression {
  readonly text: string;
  /** Where it begins in the statement; null: it is the stored one. */
  readonly at: number | null;
}

/** The expression as it is stored. `only`: the columns it may use, null: all. */
export async function partitionExpression(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  given: GivenExpression,
  relation: SinkRelation,
  only: readonly string[] | null,
): Promise<string> {
  await loadPostgresParser();
  requireColumns(given, relation, only);
  const columns = relation.columns.map(({ name, type }) => `${quoteIdentifier(name)} ${type}`);
  const index = `CREATE INDEX millrace_partition_by ON ${scratch} (((`;
  await session.query(`DROP TABLE IF EXISTS ${scratch} CASCADE`, [], { quiet: true });
  await session.query(`CREATE TEMPORARY TABLE millrace_partition (${columns.join(', ')})`, [], { quiet: true });
  try {
    await session.query(`${index}${given.text}\n)::bigint))`, [], { quiet: true });
  } catch (error) {
    throw atUserPosition(error, index.length, given);
  }
  await session.query(`CREATE TEMPORARY VIEW millrace_partition_view AS SELECT (${given.text}\n) AS p FROM ${scratch}`, [], {
    quiet: true,
  });
  const oids = await firstRow(session, `SELECT '${scratchView}'::regclass::oid, 'pg_temp.millrace_partition_by'::regclass::oid`);
  await functionsOfView(context, session, [oids?.[0] ?? '0'], [`SELECT ${given.text}`], role);
  const stored = await perform(context, session, ["SELECT to_jsonb(pg_get_indexdef(($1 ->> 'index')::oid, 1, false))"], {
    index: oids?.[1],
  });
  await session.query(`DROP TABLE ${scratch} CASCADE`, [], { quiet: true });
  return String(stored);
}

/** Raises unless the text is one expression over columns that it may use. */
function requireColumns({ text, at }: GivenExpression, relation: SinkRelation, only: readonly string[] | null): void {
  const position = at === null ? {} : { position: at + 1 };
  const selects = [`SELECT (${text}\n)`, `SELECT ${text}`].map((sql) => {
    const [statement, ...more] = list(node(parseSql(sql))['stmts']);
    return more.length === 0 ? node(node(node(statement)['stmt'])['SelectStmt']) : {};
  });
  const clauses = (select: Fields): string[] => Object.keys(select).filter((key) => key !== 'limitOption' && key !== 'op');
  if (selects.some((select) => clauses(select).join() !== 'targetList' || list(select['targetList']).length !== 1)) {
    throw millraceError('syntax_error', { message: 'PARTITION BY wants one expression' }, position);
  }
  walk(selects[0], (kind, fields) => {
    if (kind !== 'ColumnRef') return;
    const names = strings(fields['fields']);
    const [name = '*', ...more] = names;
    const known = relation.columns.map((column) => column.name);
    if (
      more.length > 0 ||
      !known.includes(name) ||
      list(fields['fields']).some((part) => isFields(part) && kindOf(part).kind === 'A_Star')
    ) {
      throw millraceError(
        'sink_column_undefined',
        {
          clause: 'PARTITION BY',
          column: names.join('.') || '*',
          relation: relation.name,
          columns: known.join(', '),
          hint: more.length > 0 ? 'Columns are named alone there, without the relation.' : '',
        },
        position,
      );
    }
    if (only !== null && !only.includes(name)) {
      throw millraceError(
        'invalid_option',
        {
          message: `PARTITION BY expression cannot refer to non-key column "${name}"`,
          hint: 'With ENVELOPE DEBEZIUM the messages of a key must stay in one partition: use key columns only.',
        },
        position,
      );
    }
  });
}

/** What Postgres says about the expression, at the place where it stands in the user's text. */
function atUserPosition(error: unknown, prefixLength: number, { text, at }: GivenExpression): unknown {
  if (!(error instanceof UpstreamError)) return error;
  const place = Number(error.fields['P'] ?? 0) - prefixLength;
  const position = place >= 1 && place <= [...text].length ? place : 1;
  return new MillraceError('population_failed', {
    severity: 'ERROR',
    code: error.code,
    message: `invalid PARTITION BY: ${error.message.replaceAll('index expressions', 'PARTITION BY').replaceAll('index expression', 'PARTITION BY')}`,
    ...(error.fields['D'] === undefined ? {} : { detail: error.fields['D'] }),
    ...(error.fields['H'] === undefined ? {} : { hint: error.fields['H'] }),
    ...(at === null ? {} : { position: at + position }),
  });
}
