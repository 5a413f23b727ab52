/**
 * Taking live relations out of sight.
 * Invariant: the caller's transaction drops the views users see and marks the rest; storage, deltas and slots are cleared away
 * by the engine after the commit, so that an open transaction never holds a lock an epoch needs.
 */
import { definitionView, gateView } from '../catalog/model.ts';
import type { CallerSession } from './caller-session.ts';
import { firstRow, perform, type StatementContext } from './context.ts';
import type { Droppable } from './dependents.ts';

/**
 * Drops relations in this order. `named`: the user named them, so Postgres checks that the caller may; those reached by CASCADE go whoever
 * owns them, as in Postgres, and so they come first: a refusal of the rest rolls them back.
 */
export async function removeRelations(
  context: StatementContext,
  session: CallerSession,
  objects: readonly Droppable[],
  options: { readonly named: boolean; readonly cascade: boolean },
): Promise<void> {
  const live = objects.flatMap((object) => (object.id === null ? [] : [object.id]));
  // Definition views hang on the facades they read: they go first, or RESTRICT would name them.
  await dropDefinitions(context, session, live);
  for (const object of objects) {
    const kind = object.id === null && object.kind === 'materialized view' ? 'MATERIALIZED VIEW' : 'VIEW';
    const sql = `DROP ${kind} ${object.name}${options.cascade ? ' CASCADE' : ''}`;
    if (options.named || (await mayDrop(session, object.oid))) await session.query(sql);
    else await perform(context, session, [sql]);
  }
  await dropLive(context, session, live);
}

async function mayDrop(session: CallerSession, oid: string): Promise<boolean> {
  const row = await firstRow(
    session,
    `SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE') OR pg_catalog.pg_has_role(n.nspowner, 'USAGE')
       FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE c.oid = $1::oid`,
    [oid],
  );
  return row?.[0] === 't';
}

async function dropDefinitions(context: StatementContext, session: CallerSession, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await perform(
    context,
    session,
    ids.map((id) => `DROP VIEW IF EXISTS ${definitionView(Number(id))}`),
  );
}

/** Marks relations dropped, with their gates and definitions gone. Their facades must be gone already. */
export async function dropLive(context: StatementContext, session: CallerSession, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await perform(
    context,
    session,
    [
      ...ids.map((id) => `DROP VIEW IF EXISTS ${definitionView(Number(id))}`),
      ...ids.map((id) => `DROP VIEW IF EXISTS ${gateView(Number(id))}`),
      `UPDATE millrace.relation SET state = 'dropped', facade = NULL, state_since = now()
        WHERE id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
    ],
    { ids },
  );
}

/** A CREATE whose population failed leaves nothing behind, as a failed CREATE in Postgres. */
export async function dropFailed(context: StatementContext, session: CallerSession, relationId: number, facade: string): Promise<void> {
  if (facade !== '') await session.query(`DROP VIEW IF EXISTS ${facade}`, [], { quiet: true });
  await dropLive(context, session, [String(relationId)]);
}

/** Marks sources dropped, facades included; their tables must be gone. The engine drops slots and storage after the commit. */
export async function dropSources(context: StatementContext, session: CallerSession, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  const facades = (await perform(
    context,
    session,
    [
      `SELECT coalesce(jsonb_agg(jsonb_build_object('oid', c.oid::text, 'name', millrace.qualified_name(c.oid))), '[]')
         FROM millrace.source s JOIN pg_class c ON c.oid = s.facade
        WHERE s.id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
    ],
    { ids },
  )) as { oid: string; name: string }[];
  const views = facades.map(({ oid, name }) => ({ id: null, oid, kind: 'view' as const, name }));
  await removeRelations(context, session, views, { named: false, cascade: false });
  await perform(
    context,
    session,
    [
      // The way to the origin is kept with the row: the engine still has to drop the slot there, also when the connection goes next.
      `UPDATE millrace.source s
          SET status = 'dropped', facade = NULL, status_since = now(),
              details = (SELECT jsonb_build_object('options', c.options, 'secrets',
                                (SELECT coalesce(jsonb_object_agg(x.id, jsonb_build_object('name', x.name, 'value', x.value)), '{}')
                                   FROM millrace.secret x
                                  WHERE x.id::text IN (SELECT o.value ->> 'secret' FROM jsonb_each(c.options) o)))
                           FROM millrace.connection c WHERE c.id = s.connection_id)
        WHERE s.id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
    ],
    { ids },
  );
}
