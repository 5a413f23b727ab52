/**
 * What a stream table is made of: storage, gate, plan, the tables it reads.
 * Invariant: made in the caller's transaction from the query as the caller's role may run it; nothing of it has a name yet that users see.
 */
import { gateView, storageTable } from '../catalog/model.ts';
import { gateSql } from '../catalog/storage-ddl.ts';
import { millraceError } from '../errors.ts';
import { storageDdl, visibleColumns } from '../ivm/view-plan.ts';
import { quoteIdentifier, quoteQualified } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { type CallerRole, perform, type StatementContext } from './context.ts';
import { requireSameTypes } from './materialized-views.ts';
import { dropFailed } from './removal.ts';
import { invalidArgument, type RefreshMode } from './stream-table-options.ts';
import {
  type Chosen,
  chooseImmediate,
  choosePlan,
  createScratch,
  type Definition,
  dropScratch,
  fullPlan,
  readDefinition,
  requireDifferential,
  scratch,
} from './stream-table-plan.ts';
import { baseRows, insertSources, registerBases, sourceRows } from './stream-table-sources.ts';
import { awaitReady, waitsForEngine } from './wait.ts';

export interface Wanted {
  readonly query: string;
  /** The query as its user has typed it, where `query` is another text of it. */
  readonly typed?: string;
  /** Null: it is never behind (IMMEDIATE). */
  readonly schedule: string | null;
  readonly mode: RefreshMode;
  readonly options: Readonly<Record<string, unknown>>;
}

export interface NamedFacade {
  readonly facade: string;
  readonly name: string;
}

/** The stream table whose place another takes, and those that read it, which the other may not read. */
export interface Replaced extends NamedFacade {
  readonly id: string;
  readonly readers: readonly NamedFacade[];
}

/** Everything of a stream table but its facade. `replaced`: the one whose place it takes. Answers its id. */
export async function makeStreamTable(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  wanted: Wanted,
  replaced: Replaced | null,
): Promise<number> {
  await createScratch(session, wanted.query);
  const definition = await readDefinition(context, session, role);
  if (wanted.options['cdc_mode'] === 'wal' && !definition.sources.streams) {
    throw invalidArgument("cdc_mode = 'wal' requires wal_level = logical and an available replication slot");
  }
  for (const reader of replaced === null ? [] : [replaced, ...replaced.readers]) {
    if (!definition.sources.read.some((relation) => relation.oid === reader.facade)) continue;
    const path = [replaced, ...(reader === replaced ? [] : [reader]), replaced].map((one) => one?.name);
    throw millraceError('stream_table_cycle', { path: path.join(' -> ') });
  }
  const id = Number(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  const chosen = await choose(context, session, definition, id, wanted.mode);
  tell(session, wanted.mode, chosen, definition);
  const { plan } = chosen;
  const { sources } = definition;
  const list = visibleColumns(plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  await perform(
    context,
    session,
    [
      ...registerBases,
      ...storageDdl(plan, id, sources.storage),
      gateSql(id, list, `${storageTable(id)} s`, 'pending'),
      `GRANT SELECT ON ${gateView(id)} TO ${quoteIdentifier(role.name)}`,
      `INSERT INTO millrace.relation (id, kind, gate) VALUES (($1 ->> 'id')::bigint, 'view', ($1 ->> 'gate')::regclass)`,
      `INSERT INTO millrace.live_view (relation_id, definition, plan) VALUES (($1 ->> 'id')::bigint, NULL, $1 -> 'plan')`,
      `INSERT INTO millrace.live_view_input (relation_id, input_id)
       SELECT ($1 ->> 'id')::bigint, value::bigint FROM jsonb_array_elements_text($1 -> 'inputs')`,
      `INSERT INTO millrace.stream_table (relation_id, query, definition, schedule, requested_mode, refresh_mode, downgrade_reason, options, pgt_id)
       VALUES (($1 ->> 'id')::bigint, $1 ->> 'query', $1 ->> 'text', $1 ->> 'schedule', $1 ->> 'requested', $1 ->> 'mode', $1 ->> 'downgrade', $1 -> 'options',
               (SELECT coalesce(t.pgt_id, t.relation_id) FROM millrace.stream_table t WHERE t.relation_id = ($1 ->> 'replaced')::bigint))`,
      insertSources,
    ],
    {
      id,
      gate: gateView(id),
      bases: baseRows(sources.tables),
      plan,
      inputs: definition.analysis.inputs.map(String),
      query: wanted.typed ?? wanted.query,
      text: definition.text,
      schedule: wanted.schedule,
      requested: wanted.mode,
      mode: chosen.mode,
      downgrade: chosen.mode === 'FULL' && wanted.mode !== 'FULL' ? chosen.reason : null,
      options: wanted.options,
      replaced: replaced?.id ?? null,
      sources: sourceRows(sources),
    },
  );
  await requireUnreplaced(context, session, definition);
  await requireSameTypes(session, id, plan, scratch);
  await dropScratch(session);
  return id;
}

/**
 * What it reads is not about to be replaced: that one would go, and this one would be left without it. To be asked when base tables are locked
 * (registerBases), so that of two transactions one sees the other.
 */
async function requireUnreplaced(context: StatementContext, session: CallerSession, { sources }: Definition): Promise<void> {
  const names = await perform(
    context,
    session,
    [
      `SELECT to_jsonb(string_agg(millrace.qualified_name(o.facade), ', '))
         FROM millrace.stream_table t JOIN millrace.relation n ON n.id = t.relation_id AND n.state <> 'dropped'
         JOIN millrace.relation o ON o.id = t.replaces AND o.state <> 'dropped'
        WHERE o.id = ANY (ARRAY(SELECT jsonb_array_elements_text($1 -> 'read'))::bigint[])`,
    ],
    { read: sources.read.flatMap(({ relationId }) => (relationId === null ? [] : [relationId])) },
  );
  if (names !== null) throw invalidArgument(`stream table ${String(names)} is being given another query: try again when that is done`);
}

async function choose(
  context: StatementContext,
  session: CallerSession,
  definition: Definition,
  id: number,
  mode: RefreshMode,
): Promise<Chosen> {
  if (mode === 'FULL') {
    const reason = 'refresh_mode FULL was asked for';
    return { mode: 'FULL', plan: fullPlan(definition, reason), reason, possible: false };
  }
  if (mode === 'IMMEDIATE') return await chooseImmediate(context, session, definition, id);
  const chosen = await choosePlan(context, session, definition, id);
  if (mode === 'DIFFERENTIAL') requireDifferential(chosen);
  return chosen;
}

/** What the caller should know of the choice. */
function tell(session: CallerSession, mode: RefreshMode, chosen: Chosen, { sources }: Definition): void {
  if (mode === 'FULL' || chosen.mode === 'IMMEDIATE') return;
  if (chosen.mode === 'FULL') {
    session.notice({ severity: 'WARNING', code: '01000', message: `Falling back to FULL refresh: ${chosen.reason}` });
    return;
  }
  for (const table of sources.tables) {
    if (table.holds !== null || (sources.streams ? table.identity === 'f' : table.registered)) continue;
    const shown = quoteQualified(table.schema, table.name);
    if (!sources.streams) {
      session.notice({
        severity: 'NOTICE',
        code: '00000',
        message: `table ${shown} is given triggers that tell of its changes`,
        detail: 'Millrace cannot read the WAL here.',
        hint: 'ALTER SYSTEM SET wal_level = logical; restart the server, and give the role that Millrace connects as REPLICATION.',
      });
      continue;
    }
    session.notice({
      severity: 'NOTICE',
      code: '00000',
      message: `table ${shown} is given REPLICA IDENTITY FULL`,
      detail: 'Changes are taken from the WAL, which then holds the old rows of updates and deletes.',
      hint: 'It is put back when no stream table reads the table any more.',
    });
  }
}

export async function waitForIt(context: StatementContext, session: CallerSession, id: number, wanted: Wanted): Promise<void> {
  if (wanted.options['initialize'] === false || !(await waitsForEngine(session))) return;
  session.onCommit((after) => awaitReady(after, [String(id)], ({ name }) => dropFailed(context, after, id, name)));
}
