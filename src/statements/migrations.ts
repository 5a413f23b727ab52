/**
 * CREATE MIGRATION and EXPLAIN CREATE MIGRATION.
 * Invariant: CREATE makes what the engine needs, in the caller's transaction, and copies nothing: what speaks against the migration is raised before
 * anything is made, and past the commit no lock on the table is held. EXPLAIN changes nothing, not even a missing catalog.
 */
import { millraceError } from '../errors.ts';
import { createSql } from '../migration/create-sql.ts';
import type { Examined } from '../migration/examined.ts';
import { explainLines } from '../migration/explain.ts';
import { tableName } from '../migration/facts.ts';
import { type Finding, warning } from '../migration/finding.ts';
import { findings } from '../migration/findings.ts';
import { dataSchema, homeName } from '../migration/places.ts';
import type { CreateMigration, ExplainMigration } from '../sql/ast.ts';
import { quoteQualified } from '../sql/quote.ts';
import type { CallerSession, FieldDescription, StatementResult } from './caller-session.ts';
import { callerRole, catalogPresent, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { examine } from './migration-examination.ts';
import { awaitMigration } from './migration-wait.ts';
import { waitsForEngine } from './wait.ts';

const done: StatementResult = { kind: 'done', tag: 'CREATE MIGRATION' };

export const explainFields: readonly FieldDescription[] = [{ name: 'QUERY PLAN', typeOid: 25, typeModifier: -1 }];

export async function explainMigration(
  context: StatementContext,
  session: CallerSession,
  { migration }: ExplainMigration,
): Promise<StatementResult> {
  const hasCatalog = await catalogPresent(context, session);
  const isReadOnly = (await firstRow(session, "SELECT pg_catalog.current_setting('transaction_read_only')"))?.[0] === 'on';
  const examined = await examine(context, session, await callerRole(session), migration, { hasCatalog, mayTry: !isReadOnly });
  const untried =
    isReadOnly && examined.definition.kind !== 'move'
      ? [warning('not_tried', 'types and expressions were not tried: the transaction is read-only')]
      : [];
  const lines = explainLines(examined, [...findings(examined), ...untried]);
  return { kind: 'rows', fields: explainFields, rows: lines.map((line) => [line]), tag: 'EXPLAIN' };
}

export async function createMigration(
  context: StatementContext,
  session: CallerSession,
  statement: CreateMigration,
  text: string,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const { name } = statement;
  if (await isUnderWay(session, name.name)) {
    if (!statement.ifNotExists) throw millraceError('duplicate_object', { kind: 'migration', name: name.name }, { position: name.at + 1 });
    session.notice({ severity: 'NOTICE', code: '42710', message: `migration "${name.name}" already exists, skipping` });
    return done;
  }
  const examined = await examine(context, session, await callerRole(session), statement, { hasCatalog: true, mayTry: true });
  judge(session, findings(examined));
  const id = await make(context, session, examined, text);
  if (await waitsForEngine(session)) {
    session.onCommit((after) => awaitMigration(after, { id: String(id), name: name.name }, examined.options.cutover));
  }
  return done;
}

async function isUnderWay(session: CallerSession, name: string): Promise<boolean> {
  const row = await firstRow(session, "SELECT m.phase FROM millrace.migration_named($1, 'set') AS m", [name]);
  const phase = row?.[0] ?? null;
  return phase !== null && phase !== 'finished' && phase !== 'cancelled';
}

/** Raises the first blocker, with the others in its DETAIL; tells the warnings. */
function judge(session: CallerSession, found: readonly Finding[]): void {
  const [first, ...others] = found.filter(({ severity }) => severity === 'blocker');
  if (first !== undefined) {
    const further = others.map(({ message }) => `\nFurther: ${message}.`).join('');
    throw millraceError('migration_refused', {
      code: first.sqlstate,
      message: first.message,
      detail: `${first.detail ?? ''}${further}`.trim(),
      hint: first.hint ?? '',
    });
  }
  for (const { severity, sqlstate, message, detail, hint } of found) {
    if (severity !== 'warning') continue;
    session.notice({
      severity: 'WARNING',
      code: sqlstate,
      message,
      ...(detail === undefined ? {} : { detail }),
      ...(hint === undefined ? {} : { hint }),
    });
  }
}

/** Makes the target and all that belongs to it, and enters the migration in the catalog. */
async function make(context: StatementContext, session: CallerSession, examined: Examined, text: string): Promise<number> {
  const { facts, definition, options } = examined;
  const { source } = facts.table;
  const unchanged = await perform(context, session, [`LOCK TABLE ${tableName(facts.table)} IN ACCESS SHARE MODE`, unchangedSql], {
    oid: source.oid,
    columns: source.columns.map(({ attnum, name, notNull }) => ({ attnum, name, notNull })),
  });
  if (unchanged !== true) throw millraceError('migration_table_changed', { table: tableName(facts.table) });
  const id = Number(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  await perform(context, session, createSql(id, source, definition, options));
  await perform(
    context,
    session,
    [
      `INSERT INTO millrace.migration (id, name, owner, statement, source, source_oid, target_oid, definition, options)
       VALUES (($1 ->> 'id')::bigint, $1 ->> 'name', ($1 -> 'source' -> 'owner' ->> 'oid')::oid, $1 ->> 'statement', $1 -> 'source',
               ($1 -> 'source' ->> 'oid')::oid, ($1 ->> 'target')::regclass, $1 -> 'definition', $1 -> 'options')`,
      `INSERT INTO millrace.migration_progress (migration_id, rows_total) VALUES (($1 ->> 'id')::bigint, nullif(($1 ->> 'rows')::numeric::bigint, 0))`,
    ],
    {
      id,
      name: examined.name,
      statement: text,
      source,
      target: quoteQualified(dataSchema, homeName(id)),
      definition,
      options,
      rows: facts.table.rows,
    },
  );
  return id;
}

/** The columns are those that were examined: now that the table is locked they stay. */
const unchangedSql = `
SELECT to_jsonb(coalesce(jsonb_agg(jsonb_build_object('attnum', a.attnum, 'name', a.attname, 'notNull', a.attnotnull) ORDER BY a.attnum), '[]') = $1 -> 'columns')
  FROM pg_attribute a WHERE a.attrelid = ($1 ->> 'oid')::oid AND a.attnum > 0 AND NOT a.attisdropped`;
