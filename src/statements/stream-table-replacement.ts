/**
 * Another query, or another way of keeping it, for a stream table that is there: a new one takes its place behind the same facade.
 * Invariant: those that read it are made anew over the new one, in order, and take their places with it in one step: a reader sees all of the old
 * or all of the new. Where that cannot be, because columns they use are gone or their own columns would change, nothing happens.
 */
import { gateView } from '../catalog/model.ts';
import { MillraceError } from '../errors.ts';
import { quoteQualified } from '../sql/quote.ts';
import { type CallerSession, UpstreamError } from './caller-session.ts';
import { type CallerRole, perform, type StatementContext } from './context.ts';
import { sinksReading } from './dependents.ts';
import { facadeTriggers } from './facades.ts';
import type { LiveObject } from './names.ts';
import { dropLive } from './removal.ts';
import { makeStreamTable, type Wanted, waitForIt } from './stream-table-making.ts';
import { invalidArgument, refreshMode } from './stream-table-options.ts';
import { lockBases } from './stream-table-sources.ts';
import { attachFacade } from './tables.ts';
import { awaitReady, waitsForEngine } from './wait.ts';

type Old = Pick<LiveObject, 'id' | 'facade' | 'state' | 'schema' | 'name'> & { readonly shown: string };

/** A stream table that reads another one, itself or through others. */
interface Reader extends Old {
  readonly definition: string;
  readonly query: string;
  readonly schedule: string | null;
  readonly requested: string;
  readonly mode: string;
  readonly status: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly mine: boolean;
}

interface Place {
  readonly old: Old;
  readonly id: number;
  readonly wanted: Wanted;
}

export async function replaceQuery(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  old: Old,
  wanted: Wanted,
  oldMode: string,
): Promise<void> {
  // Whoever makes one that reads it is waited for, or waits.
  await perform(context, session, [lockBases]);
  const readers = await readersOf(context, session, role, old);
  requireReplaceable(old, wanted, oldMode, readers);
  const sinks = await sinksReading(
    session,
    [old, ...readers].map(({ id }) => id),
  );
  if (sinks.length > 0) {
    const names = sinks.map(({ name }) => name).join(', ');
    throw invalidArgument(
      `stream table ${old.shown} has dependent sinks: ${names}. Create another stream table and give it to them: ALTER SINK .. SET FROM.`,
    );
  }
  // Those that were to take its place, and have not yet, are not wanted any more.
  const others = (await perform(
    context,
    session,
    [
      `SELECT coalesce(jsonb_agg(t.relation_id::text), '[]')
         FROM millrace.stream_table w JOIN millrace.stream_table t ON t.relation_id = w.relation_id OR t.replaces_with = w.replaces_with
         JOIN millrace.relation r ON r.id = t.relation_id
        WHERE w.replaces = ANY (ARRAY(SELECT jsonb_array_elements_text($1 -> 'ids'))::bigint[]) AND t.replaces IS NOT NULL AND r.state <> 'dropped'`,
    ],
    { ids: [old, ...readers].map(({ id }) => id) },
  )) as string[];
  await dropLive(context, session, [...new Set(others)]);
  const below = readers.map(({ facade, shown }) => ({ facade, name: shown }));
  const id = await makeStreamTable(context, session, role, wanted, { id: old.id, facade: old.facade, name: old.shown, readers: below });
  const first: Place = { old, id, wanted };
  const beside =
    (await haveSameColumns(session, old.id, id)) &&
    wanted.options['initialize'] !== false &&
    [old, ...readers].every(({ state }) => state === 'ready');
  if (!beside) {
    const places = [first];
    await takePlace(context, session, first);
    for (const reader of readers) {
      const place = await remake(context, session, role, old, reader);
      places.push(place);
      await takePlace(context, session, place);
    }
    for (const place of places) await waitForIt(context, session, place.id, place.wanted);
    return;
  }
  const places = [first];
  for (const reader of readers) {
    // What they read by its name is to be the new one, for as long as that is looked up.
    await lendFacades(context, session, places, 'new');
    places.push(await remake(context, session, role, old, reader));
    await lendFacades(context, session, places.slice(0, -1), 'old');
  }
  await fillBeside(context, session, places);
}

/** In an order in which each comes behind what it reads. */
async function readersOf(context: StatementContext, session: CallerSession, role: CallerRole, old: Old): Promise<readonly Reader[]> {
  return (await perform(
    context,
    session,
    [
      `WITH RECURSIVE below AS (
         SELECT ($1 ->> 'id')::bigint AS id, 0 AS depth
          UNION
         SELECT i.relation_id, b.depth + 1
           FROM below b
           JOIN millrace.live_view_input i ON i.input_id = b.id OR i.input_id IN (
                  SELECT t.relation_id FROM millrace.base_table t WHERE t.table_oid = pg_catalog.to_regclass('millrace_data.s' || b.id))
           JOIN millrace.relation r ON r.id = i.relation_id AND r.state <> 'dropped' AND r.facade IS NOT NULL)
       SELECT coalesce(jsonb_agg(jsonb_build_object(
                'id', t.relation_id::text, 'facade', r.facade::text, 'state', r.state, 'schema', n.nspname, 'name', c.relname,
                'shown', format('%s.%s', n.nspname, c.relname), 'definition', t.definition, 'query', t.query, 'schedule', t.schedule,
                'requested', t.requested_mode, 'mode', t.refresh_mode, 'status', t.status, 'options', t.options,
                'mine', pg_catalog.pg_has_role(($1 ->> 'role')::oid, c.relowner, 'USAGE')) ORDER BY b.depth, t.relation_id), '[]')
         FROM (SELECT id, max(depth) AS depth FROM below WHERE depth > 0 GROUP BY id) b
         JOIN millrace.stream_table t ON t.relation_id = b.id
         JOIN millrace.relation r ON r.id = t.relation_id
         JOIN pg_catalog.pg_class c ON c.oid = r.facade JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace`,
    ],
    { id: old.id, role: role.oid },
  )) as readonly Reader[];
}

function requireReplaceable(old: Old, wanted: Wanted, oldMode: string, readers: readonly Reader[]): void {
  for (const reader of readers) {
    if (!reader.mine) throw refused(old, reader, 'it belongs to another role');
    if (reader.status !== 'ACTIVE' && reader.status !== 'INITIALIZING') throw refused(old, reader, `it is ${reader.status.toLowerCase()}`);
    if (wanted.mode === 'IMMEDIATE' || oldMode === 'IMMEDIATE' || reader.mode === 'IMMEDIATE')
      throw refused(old, reader, 'IMMEDIATE mode is not entered or left together');
  }
}

const refused = (old: Old, reader: Reader, reason: string): MillraceError =>
  invalidArgument(
    `stream table ${old.shown} has dependent stream tables: ${reader.shown}, which cannot be kept over the new query: ${reason}. Drop them, alter it, and create them again.`,
  );

/** The stream table that a reader becomes. */
async function remake(context: StatementContext, session: CallerSession, role: CallerRole, root: Old, reader: Reader): Promise<Place> {
  const wanted: Wanted = {
    query: reader.definition,
    typed: reader.query,
    schedule: reader.schedule,
    mode: refreshMode(reader.requested),
    options: reader.options,
  };
  let id: number;
  try {
    id = await makeStreamTable(context, session, role, wanted, { id: reader.id, facade: reader.facade, name: reader.shown, readers: [] });
  } catch (error) {
    if (error instanceof UpstreamError || error instanceof MillraceError) throw refused(root, reader, error.message);
    throw error;
  }
  // One that cannot be read shows nobody its columns.
  if (reader.state !== 'error' && !(await haveSameColumns(session, reader.id, id)))
    throw refused(root, reader, 'its columns would be others');
  return { old: reader, id, wanted };
}

/** Whether users see the same columns of both. */
async function haveSameColumns(session: CallerSession, old: string, id: number): Promise<boolean> {
  const different = await session.query(
    `SELECT n.attname FROM pg_catalog.pg_attribute o
       LEFT JOIN pg_catalog.pg_attribute n ON n.attrelid = $2::pg_catalog.regclass AND n.attnum = o.attnum
      WHERE o.attrelid = $1::pg_catalog.regclass AND o.attnum > 0
        AND (o.attname, o.atttypid, o.atttypmod, o.attcollation) IS DISTINCT FROM (n.attname, n.atttypid, n.atttypmod, n.attcollation)
      UNION ALL
     SELECT n.attname FROM pg_catalog.pg_attribute n WHERE n.attrelid = $2::pg_catalog.regclass
        AND n.attnum > (SELECT max(o.attnum) FROM pg_catalog.pg_attribute o WHERE o.attrelid = $1::pg_catalog.regclass)`,
    [gateView(Number(old)), gateView(id)],
    { quiet: true },
  );
  return different.rows.length === 0;
}

/** Facades stand for the new ones, or for the old ones again. */
async function lendFacades(context: StatementContext, session: CallerSession, places: readonly Place[], to: 'new' | 'old'): Promise<void> {
  const pairs = places.map(({ old, id }) => ({
    from: to === 'new' ? old.id : String(id),
    to: to === 'new' ? String(id) : old.id,
    facade: old.facade,
  }));
  await perform(
    context,
    session,
    [
      "UPDATE millrace.relation SET facade = NULL FROM jsonb_array_elements($1 -> 'pairs') p WHERE id = (p ->> 'from')::bigint",
      "UPDATE millrace.relation SET facade = (p ->> 'facade')::oid FROM jsonb_array_elements($1 -> 'pairs') p WHERE id = (p ->> 'to')::bigint",
    ],
    { pairs },
  );
}

/** Filled beside the old ones, which are read until all of the new ones are there. */
async function fillBeside(context: StatementContext, session: CallerSession, places: readonly Place[]): Promise<void> {
  await perform(
    context,
    session,
    [
      `UPDATE millrace.stream_table SET replaces = (p ->> 'old')::bigint, replaces_with = ($1 ->> 'together')::bigint
         FROM jsonb_array_elements($1 -> 'places') p WHERE relation_id = (p ->> 'id')::bigint`,
    ],
    { places: places.map(({ old, id }) => ({ old: old.id, id })), together: places.length === 1 ? null : places[0]?.id },
  );
  if (!(await waitsForEngine(session))) return;
  const ids = places.map(({ id }) => String(id));
  session.onCommit((after) => awaitReady(after, ids, () => dropLive(context, after, ids)));
}

/** At once: nothing can be read until it is filled. */
async function takePlace(context: StatementContext, session: CallerSession, { old, id }: Place): Promise<void> {
  const facade = quoteQualified(old.schema, old.name);
  const same = await haveSameColumns(session, old.id, id);
  await perform(
    context,
    session,
    [
      "UPDATE millrace.relation SET facade = NULL WHERE id = ($1 ->> 'old')::bigint",
      "UPDATE millrace.refresh_history SET relation_id = ($1 ->> 'id')::bigint WHERE relation_id = ($1 ->> 'old')::bigint",
    ],
    { id, old: old.id },
  );
  if (same) {
    await session.query(`CREATE OR REPLACE VIEW ${facade} AS SELECT * FROM ${gateView(id)}`, [], { quiet: true });
  } else {
    // Other columns: what reads the facade has to go first, as Postgres says.
    await session.query(`DROP VIEW ${facade}`, [], { quiet: true });
    await session.query(`CREATE VIEW ${facade} AS SELECT * FROM ${gateView(id)}`, [], { quiet: true });
    await facadeTriggers(session, facade);
  }
  await attachFacade(context, session, id, facade);
  await dropLive(context, session, [old.id]);
}
