/**
 * What a sink reads: a live relation, its columns as a sink sees them, and the keys it is known to have.
 * Invariant: columns are those of the facade as it is now, by its names; a known key is one of the relation in every state.
 */
import type { VersionColumn } from '../catalog/model.ts';
import type { SinkColumn } from '../catalog/sink-model.ts';
import { millraceError } from '../errors.ts';
import { type InputColumn, type KnownKeys, knownKeys } from '../ivm/known-keys.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import type { QualifiedName } from '../sql/ast.ts';
import { functionNames, loadPostgresParser } from '../sql/postgres-parser.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { type CallerRole, firstRow, perform, type StatementContext } from './context.ts';
import { droppable } from './dependents.ts';
import { findLive, findNamed, isStreamTable, type LiveObject, quotedName, shownName } from './names.ts';
import { functionKinds } from './view-functions.ts';

export interface SinkRelation {
  readonly id: string;
  readonly facade: string;
  /** Qualified and quoted. */
  readonly name: string;
  /** As users call it: "table", "materialized view". */
  readonly kind: string;
  readonly state: string;
  /** Made by the transaction that asks: the engine does not see it yet. */
  readonly isNew: boolean;
  readonly error: { readonly message?: string; readonly detail?: string; readonly hint?: string } | null;
  readonly columns: readonly SinkColumn[];
  /** Names of the columns of each key; an empty one: there is at most one row. */
  readonly keys: readonly (readonly string[])[];
}

/** The relation that a sink is to read. Raises what keeps it from being one. */
export async function requireSinkable(
  context: StatementContext,
  session: CallerSession,
  name: QualifiedName,
  role: CallerRole,
): Promise<SinkRelation> {
  const live = await findLive(session, name);
  if (live === null) throw await notLive(context, session, name);
  const kind = (await isStreamTable(session, live.id)) ? 'stream table' : droppable(live).kind;
  if (live.type === 'source') throw notSinkable(kind, name, { hint: 'Export a table of it: CREATE TABLE .. FROM SOURCE.' });
  const may = await firstRow(session, "SELECT pg_catalog.has_table_privilege($1::oid, 'SELECT')", [live.facade]);
  if (may?.[0] !== 't') {
    throw millraceError(
      'relation_permission_denied',
      { kind, name: shownName(name), name_quoted: quotedName(name), role: role.name, role_quoted: quoteIdentifier(role.name) },
      { position: name.at + 1 },
    );
  }
  return await describeRelation(context, session, live, { kind, name });
}

async function notLive(context: StatementContext, session: CallerSession, name: QualifiedName): Promise<Error> {
  const row = await firstRow(
    session,
    `SELECT c.relkind, n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE c.oid = pg_catalog.to_regclass($1)`,
    [quotedName(name)],
  );
  if (row === null) {
    if ((await findNamed(context, session, 'sink', name)) !== null) return notSinkable('sink', name, {});
    return millraceError('undefined_relation', { name: shownName(name) }, { position: name.at + 1 });
  }
  const [relkind, schema] = row;
  const around = `SELECT pgtrickle.create_stream_table('my_stream', 'SELECT * FROM ${quotedName(name).replaceAll("'", "''")}');`;
  if (/^(pg_|information_schema$|mz_|millrace$|millrace_data$)/.test(schema ?? '')) {
    return notSinkable('catalog object', name, {
      detail: 'A sink cannot be created directly on a catalog object.',
      hint: 'Create a table of your own from it.',
    });
  }
  const kinds: Readonly<Record<string, string>> = { v: 'view', m: 'materialized view', p: 'table', f: 'foreign table', r: 'table' };
  const kind = kinds[relkind ?? ''] ?? 'relation';
  return notSinkable(kind, name, {
    detail: `Sinks follow relations that Millrace keeps; this ${kind} is Postgres's own.`,
    hint:
      relkind === 'v'
        ? 'Create a materialized view over live relations, or a stream table, with the query of the view.'
        : `Create a stream table over it: ${around}`,
  });
}

function notSinkable(kind: string, name: QualifiedName, more: { readonly detail?: string; readonly hint?: string }): Error {
  return millraceError('not_sinkable', { kind, name: shownName(name), ...more }, { position: name.at + 1 });
}

interface Described {
  readonly state: string;
  readonly isNew: boolean;
  readonly error: SinkRelation['error'];
  readonly mode: string | null;
  readonly columns: readonly SinkColumn[];
  readonly versionColumns: readonly VersionColumn[] | null;
  readonly keyAttnums: readonly number[] | null;
  readonly plan: ViewPlan | null;
  readonly definition: string | null;
}

const describeSql = `
SELECT jsonb_build_object(
         'state', r.state, 'isNew', millrace.is_own_row(r.xmin), 'error', r.error, 'mode', t.refresh_mode,
         'columns', (SELECT jsonb_agg(millrace.type_shape(a.atttypid, a.atttypmod) || jsonb_build_object(
                              'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'typeOid', a.atttypid::bigint,
                              'nullable', true, 'comment', col_description(a.attrelid, a.attnum),
                              'identity', (SELECT format('%s.%s:%s', s.source_id, s.origin_oid, c.value ->> 'attnum')
                                             FROM jsonb_array_elements(v.columns) WITH ORDINALITY c(value, place) WHERE c.place = a.attnum)) ORDER BY a.attnum)
                       FROM pg_attribute a WHERE a.attrelid = r.facade AND a.attnum > 0 AND NOT a.attisdropped),
         'versionColumns', v.columns, 'keyAttnums', to_jsonb(s.key_attnums), 'plan', lv.plan,
         'definition', coalesce(t.definition, CASE WHEN lv.definition IS NOT NULL THEN millrace.definition_of(lv.definition) END))
  FROM millrace.relation r
  LEFT JOIN millrace.table_version v ON v.relation_id = r.id
  LEFT JOIN millrace.storage s ON s.id = v.storage_id
  LEFT JOIN millrace.live_view lv ON lv.relation_id = r.id
  LEFT JOIN millrace.stream_table t ON t.relation_id = r.id
 WHERE r.id = ($1 ->> 'id')::bigint`;

async function describeRelation(
  context: StatementContext,
  session: CallerSession,
  live: LiveObject,
  called: { readonly kind: string; readonly name: QualifiedName },
): Promise<SinkRelation> {
  const found = (await perform(context, session, [describeSql], { id: live.id })) as Described;
  if (found.mode === 'IMMEDIATE') {
    throw notSinkable('stream table', called.name, {
      detail: "In IMMEDIATE mode it changes within the writers' own transactions, which Millrace does not follow.",
      hint: "SELECT pgtrickle.alter_stream_table(.., refresh_mode => 'DIFFERENTIAL');",
    });
  }
  const known = await keysOf(context, session, Number(live.id), found);
  const never = new Set(known.notNull);
  return {
    id: live.id,
    facade: live.facade,
    name: droppable(live).name,
    kind: called.kind,
    state: found.state,
    isNew: found.isNew,
    error: found.error,
    columns: found.columns.map((column, i) => ({ ...column, nullable: !never.has(i) })),
    keys: known.keys.map((key) => key.flatMap((place) => found.columns[place]?.name ?? [])),
  };
}

/** By places of columns: users may rename those of a facade. */
async function keysOf(context: StatementContext, session: CallerSession, id: number, found: Described): Promise<KnownKeys> {
  if (found.plan === null) {
    const places = (found.keyAttnums ?? []).map((attnum) => (found.versionColumns ?? []).findIndex((column) => column.attnum === attnum));
    const shown = places.filter((place) => place >= 0);
    return { keys: places.length > 0 && !places.includes(-1) ? [places] : [], notNull: shown };
  }
  await loadPostgresParser();
  const definition = found.definition ?? '';
  const types = await inputTypes(context, session, id, found.plan);
  const typeOf = ({ input, column }: InputColumn): string | undefined => types[String(input)]?.[column];
  // Postgres prints no query of a view over ordinary tables.
  const kinds = definition === '' ? {} : await functionKinds(context, session, functionNames(definition));
  return knownKeys(found.plan, definition, {
    sameType: (left, right) => typeOf(left) !== undefined && typeOf(left) === typeOf(right),
    returnsSet: (name) => kinds[name.replace(/^pg_catalog\./, '')]?.setReturning === true,
  });
}

/** Types of the storage columns of a view's inputs, by input and column; hidden stages are inputs -1, -2, ... */
async function inputTypes(
  context: StatementContext,
  session: CallerSession,
  id: number,
  plan: ViewPlan,
): Promise<Readonly<Record<string, Readonly<Record<string, string>>>>> {
  const tables = [
    ...plan.inputs.map((input) => ({ input: String(input), stage: null })),
    ...plan.stages.map((_, i) => ({ input: String(-1 - i), stage: `millrace_data.s${id}_${i + 1}` })),
  ];
  const found = await perform(
    context,
    session,
    [
      `SELECT jsonb_object_agg(x.input, (SELECT jsonb_object_agg(CASE WHEN x.is_base THEN 'c' || a.attnum ELSE a.attname END, a.atttypid::text)
                                           FROM pg_attribute a WHERE a.attrelid = x.storage AND a.attnum > 0 AND NOT a.attisdropped))
         FROM (SELECT t ->> 'input' AS input, b.table_oid IS NOT NULL AS is_base,
                      coalesce(to_regclass(t ->> 'stage')::oid, b.table_oid,
                               to_regclass('millrace_data.s' || coalesce(v.storage_id::text, t ->> 'input'))::oid) AS storage
                 FROM jsonb_array_elements($1 -> 'tables') t
                 LEFT JOIN millrace.table_version v ON v.relation_id = (t ->> 'input')::bigint
                 LEFT JOIN millrace.base_table b ON b.relation_id = (t ->> 'input')::bigint) x`,
    ],
    { tables },
  );
  return (found ?? {}) as Readonly<Record<string, Readonly<Record<string, string>>>>;
}

/** Raises when the engine has given the relation up. One that is not filled yet is waited for. */
export function requireReadable(relation: SinkRelation, sink: string): void {
  if (relation.state !== 'error') return;
  throw millraceError('sink_relation_failed', {
    sink,
    relation: relation.name,
    cause: [relation.error?.message ?? 'It is in error.', relation.error?.detail].filter(Boolean).join(' '),
    hint: relation.error?.hint ?? '',
  });
}
