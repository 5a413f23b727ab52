/**
 * ALTER MIGRATION.
 * Invariant: the caller's transaction only writes what is asked for; whether that can be asked now is decided by millrace.migration_named, which the
 * functions for direct connections use as well.
 */
import { millraceError } from '../errors.ts';
import type { MigrationRequest } from '../migration/model.ts';
import type { AlterMigration, MigrationOption } from '../sql/ast.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { givenMigrationOptions } from './migration-options.ts';
import { awaitRequest } from './migration-wait.ts';
import { requireOwner, undefinedObject } from './names.ts';
import { waitsForEngine } from './wait.ts';

const done: StatementResult = { kind: 'done', tag: 'ALTER MIGRATION' };

interface Named {
  readonly id: string;
  readonly owner: string;
  readonly phase: string;
  readonly paused: boolean;
  readonly refusal: { readonly code: string; readonly message: string; readonly detail: string; readonly hint: string } | null;
}

async function find(session: CallerSession, name: string, wanted: string): Promise<Named | null> {
  const row = await firstRow(session, 'SELECT m.id, m.owner, m.phase, m.paused, m.refusal FROM millrace.migration_named($1, $2) AS m', [
    name,
    wanted,
  ]);
  const [id, owner, phase, paused, refusal] = row ?? [];
  if (id === null || id === undefined) return null;
  return {
    id,
    owner: owner ?? '0',
    phase: phase ?? '',
    paused: paused === 't',
    refusal: refusal === null || refusal === undefined ? null : JSON.parse(refusal),
  };
}

export async function alterMigration(
  context: StatementContext,
  session: CallerSession,
  statement: AlterMigration,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const { name, action } = statement;
  const found = await find(session, name.name, action.kind);
  if (found === null) {
    if (!statement.ifExists) throw undefinedObject('migration', { schema: null, ...name });
    session.notice({ severity: 'NOTICE', code: '42704', message: `migration "${name.name}" does not exist, skipping` });
    return done;
  }
  await requireOwner(session, 'migration', name.name, found.owner, await callerRole(session));
  if (found.refusal !== null) throw millraceError('migration_not_now', found.refusal);
  switch (action.kind) {
    case 'set':
      await setOptions(context, session, found.id, action.options);
      return done;
    case 'pause':
    case 'resume':
      await pause(context, session, found, name.name, action.kind === 'pause');
      return done;
    case 'finalize':
      await warnOfDependents(context, session, found.id, name.name);
      break;
    default:
  }
  await request(context, session, { id: found.id, name: name.name }, action.kind);
  return done;
}

async function pause(context: StatementContext, session: CallerSession, found: Named, name: string, paused: boolean): Promise<void> {
  if (paused && found.paused) session.notice({ severity: 'NOTICE', code: '00000', message: `migration "${name}" is paused already` });
  await perform(context, session, ["UPDATE millrace.migration SET paused = ($1 ->> 'paused')::boolean WHERE id = ($1 ->> 'id')::bigint"], {
    id: found.id,
    paused,
  });
}

async function request(
  context: StatementContext,
  session: CallerSession,
  migration: { readonly id: string; readonly name: string },
  wanted: MigrationRequest,
): Promise<void> {
  await perform(context, session, ["UPDATE millrace.migration SET request = $1 ->> 'request' WHERE id = ($1 ->> 'id')::bigint"], {
    id: migration.id,
    request: wanted,
  });
  if (await waitsForEngine(session)) session.onCommit((after) => awaitRequest(after, migration, wanted));
}

async function setOptions(
  context: StatementContext,
  session: CallerSession,
  id: string,
  options: readonly MigrationOption[],
): Promise<void> {
  const fixed = options.find(({ option }) => option === 'new version' || option === 'old version');
  if (fixed !== undefined) {
    throw millraceError(
      'invalid_option',
      {
        message: `${fixed.option.toUpperCase()} of a migration cannot be changed`,
        hint: 'ALTER SCHEMA .. RENAME TO .. gives the schema another name.',
      },
      { position: fixed.at + 1 },
    );
  }
  await perform(
    context,
    session,
    [
      `UPDATE millrace.migration
          SET options = options || ($1 -> 'options'),
              window_ends_at = CASE WHEN $1 -> 'options' ? 'reverseWindowMs'
                                    THEN cut_over_at + ($1 -> 'options' ->> 'reverseWindowMs')::float8 * interval '1 ms' ELSE window_ends_at END
        WHERE id = ($1 ->> 'id')::bigint`,
    ],
    { id, options: await givenMigrationOptions(session, options) },
  );
}

/** What others have made over the old shape keeps it from being taken away. */
async function warnOfDependents(context: StatementContext, session: CallerSession, id: string, name: string): Promise<void> {
  const dependents = (await perform(context, session, [dependentsSql], { id })) as readonly string[];
  if (dependents.length === 0) return;
  session.notice({
    severity: 'WARNING',
    code: '01000',
    message: `migration "${name}" cannot be finished while other objects depend on the old shape`,
    detail: dependents.join(', '),
    hint: 'Drop them, or make them anew over the new shape.',
  });
}

const dependentsSql = `
SELECT coalesce(jsonb_agg(DISTINCT millrace.qualified_name(w.ev_class)), '[]')
  FROM millrace.migration m
  JOIN pg_namespace n ON n.nspname = m.options ->> 'oldVersion'
  JOIN pg_class c ON c.relnamespace = n.oid
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
  JOIN pg_rewrite w ON w.oid = d.objid AND w.ev_class <> c.oid
  JOIN pg_class v ON v.oid = w.ev_class
  JOIN pg_namespace vn ON vn.oid = v.relnamespace AND vn.oid <> n.oid AND vn.nspname NOT IN ('millrace', 'millrace_data', m.options ->> 'newVersion')
 WHERE m.id = ($1 ->> 'id')::bigint`;
