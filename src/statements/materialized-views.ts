/**
 * CREATE MATERIALIZED VIEW over live relations.
 * Invariant: the query is kept as Postgres itself understands it (a definition view: dependencies and renames are Postgres's business);
 * the columns a user sees have exactly the types, typmods and collations of the query.
 */
import { definitionView, gateView, storageTable } from '../catalog/model.ts';
import { gateSql } from '../catalog/storage-ddl.ts';
import { type ReadRelation, relationLookup } from '../catalog/view-inputs.ts';
import { MillraceError, millraceError } from '../errors.ts';
import { analyzeView, type ReadAnalysis, viewFunctions } from '../ivm/analyze.ts';
import { clock } from '../ivm/clock-relation.ts';
import { instantSql } from '../ivm/expiry.ts';
import { planView } from '../ivm/plan-view.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { loadViewParser } from '../ivm/source-text.ts';
import type { Analysis, ProbeColumn, ProbeResult, TableName } from '../ivm/types.ts';
import { storageDdl, visibleColumns } from '../ivm/view-plan.ts';
import type { CreateMaterializedView, RefreshMaterializedView } from '../sql/ast.ts';
import { loadPostgresParser, relationNames } from '../sql/postgres-parser.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { type CallerSession, type StatementResult, UpstreamError } from './caller-session.ts';
import { callerRole, catalogPresent, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { facadeTriggers, nameTaken } from './facades.ts';
import { withMzNow } from './mz-now.ts';
import { creationNamespace, findLive, isStreamTable, quotedName, shownName } from './names.ts';
import { dropFailed } from './removal.ts';
import { facadeOid } from './sources.ts';
import { attachFacade } from './tables.ts';
import { functionKinds, requireMaterializable } from './view-functions.ts';
import { readRelations } from './view-inputs.ts';
import { awaitReady, waitsForEngine } from './wait.ts';

const tag = 'CREATE MATERIALIZED VIEW';
const scratch = 'pg_temp.millrace_new_view';

/** Whether the query reads a live relation, as far as names tell; a plain view over live relations counts. */
export async function readsLive(context: StatementContext, session: CallerSession, statement: CreateMaterializedView): Promise<boolean> {
  if (!(await catalogPresent(context, session))) return false;
  await loadPostgresParser();
  let names: readonly { readonly schema: string | null; readonly name: string }[];
  try {
    names = relationNames(statement.query);
  } catch {
    return false; // Postgres will say what is wrong with it.
  }
  for (const name of names) {
    const row = await firstRow(session, 'SELECT millrace.reads_live(pg_catalog.to_regclass($1)::oid)', [quotedName({ ...name, at: 0 })]);
    if (row?.[0] === 't') return true;
  }
  return false;
}

export async function createMaterializedView(
  context: StatementContext,
  session: CallerSession,
  statement: CreateMaterializedView,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  await loadViewParser();
  const role = await callerRole(session);
  const namespace = await creationNamespace(session, statement.name);
  if (await nameTaken(session, namespace.oid, statement)) return { kind: 'done', tag };
  await createScratch(session, statement);
  const definition = (await firstRow(session, `SELECT millrace.definition_of('${scratch}'::regclass)`))?.[0] ?? '';
  const read = await readRelations(context, session, scratch);
  // To a live view a stream table is ordinary: its rows change by its own schedule.
  const streams = await streamTables(session, read);
  const ordinary = read.filter((relation) => relation.kind === 'ordinary' || streams.has(relation.oid));
  if (ordinary.length > 0) {
    throw millraceError('mixed_live_view', {
      name: shownName(statement.name),
      relations: ordinary.map((relation) => `${relation.schema}.${relation.name}`).join(', '),
    });
  }
  const id = Number(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  const storageOf = new Map(
    read.flatMap((relation) => (relation.relationId === null ? [] : [[relation.relationId, relation.storageId ?? relation.relationId]])),
  );
  const storage = (input: number): string => storageTable(storageOf.get(input) ?? input);
  const lookup = relationLookup(read);
  const functions = await functionKinds(context, session, viewFunctions(definition, lookup));
  const analysis = analyzeView(definition, lookup, storage, functions, clock);
  const plain = read.filter((relation) => relation.kind === 'plain view');
  const time = await requireMaterializable(
    context,
    session,
    [await facadeOid(session, scratch), ...plain.map((relation) => relation.oid)],
    [definition, ...plain.map((relation) => relation.query ?? '')],
    role,
  );
  await requireCompared(context, session, analysis, time, storage);
  const plan = planView(analysis, await probe(context, session, analysis, functions, id));
  const list = visibleColumns(plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  await perform(
    context,
    session,
    [
      `CREATE VIEW ${definitionView(id)} AS ${definition}`,
      ...storageDdl(plan, id, storage),
      gateSql(id, list, `${storageTable(id)} s`, 'pending'),
      `GRANT SELECT ON ${gateView(id)} TO ${quoteIdentifier(role.name)}`,
      `INSERT INTO millrace.relation (id, kind, gate) VALUES (($1 ->> 'id')::bigint, 'view', ($1 ->> 'gate')::regclass)`,
      `INSERT INTO millrace.live_view (relation_id, definition, plan)
       VALUES (($1 ->> 'id')::bigint, ($1 ->> 'definition')::regclass, $1 -> 'plan')`,
      `INSERT INTO millrace.live_view_input (relation_id, input_id)
       SELECT ($1 ->> 'id')::bigint, value::bigint FROM jsonb_array_elements_text($1 -> 'inputs')`,
    ],
    { id, gate: gateView(id), definition: definitionView(id), plan, inputs: analysis.inputs.map(String) },
  );
  await requireSameTypes(session, id, plan);
  const facade = `${quoteIdentifier(namespace.name)}.${quoteIdentifier(statement.name.name)}`;
  await session.query(`CREATE VIEW ${facade} AS SELECT * FROM ${gateView(id)}`, [], { quiet: true });
  await facadeTriggers(session, facade);
  await attachFacade(context, session, id, facade);
  await session.query(`DROP VIEW ${scratch}`, [], { quiet: true });
  if (statement.withData && (await waitsForEngine(session))) {
    session.onCommit((after) => awaitReady(after, [String(id)], ({ name }) => dropFailed(context, after, id, name)));
  }
  return { kind: 'done', tag };
}

/** Raises unless the instants at which the time changes the result can be told. */
async function requireCompared(
  context: StatementContext,
  session: CallerSession,
  { shape: { clock: calls, expiry } }: ReadAnalysis,
  time: string | null,
  storage: TableName,
): Promise<void> {
  const asked = expiry === null ? null : `SELECT count(*) >= 0 FROM (SELECT ${instantSql(expiry, storage, 'now()')}) x`;
  const told = asked === null || (await perform(context, session, [`SELECT to_jsonb(millrace.holds(${quoteLiteral(asked)}))`])) === true;
  if (calls || !told) throw millraceError('time_not_compared', { function: time ?? 'mz_now' });
}

/** OIDs of the stream tables among what is read. */
async function streamTables(session: CallerSession, read: readonly ReadRelation[]): Promise<ReadonlySet<string>> {
  const found = new Set<string>();
  for (const { oid, relationId } of read) if (relationId !== null && (await isStreamTable(session, String(relationId)))) found.add(oid);
  return found;
}

/** The query as a view of the caller's own: Postgres resolves names, checks types, and (LIMIT 0) the caller's privileges. */
async function createScratch(session: CallerSession, statement: CreateMaterializedView): Promise<void> {
  const columns = statement.columns === null ? '' : ` (${statement.columns.map(quoteIdentifier).join(', ')})`;
  const prefix = `CREATE TEMPORARY VIEW millrace_new_view${columns} AS `;
  const query = withMzNow(statement.query);
  try {
    await session.query('DROP VIEW IF EXISTS pg_temp.millrace_new_view', [], { quiet: true });
    await session.query(prefix + query, [], { quiet: true });
    await session.query(`SELECT * FROM ${scratch} LIMIT 0`, [], { quiet: true });
  } catch (error) {
    throw atUserPosition(error, [...prefix].length, query === statement.query ? statement.queryAt : null);
  }
}

/** An upstream error about the query, its position moved to where the query stands in the user's text; null: it was written anew. */
function atUserPosition(error: unknown, prefixLength: number, queryAt: number | null): unknown {
  if (!(error instanceof UpstreamError) || error.fields['P'] === undefined) return error;
  if (queryAt === null) {
    const { P: _, ...unplaced } = error.fields;
    return new UpstreamError(unplaced);
  }
  const position = Number(error.fields['P']) - prefixLength + queryAt;
  if (position < 1) return error;
  return new MillraceError('population_failed', {
    severity: 'ERROR',
    code: error.code,
    message: error.message,
    ...(error.fields['D'] === undefined ? {} : { detail: error.fields['D'] }),
    ...(error.fields['H'] === undefined ? {} : { hint: error.fields['H'] }),
    position,
  });
}

/** Types are asked of a view that lives for a moment: the storages it reads are Millrace's own, so the caller may not select from them. */
export async function probe(
  context: StatementContext,
  session: CallerSession,
  analysis: Analysis,
  functions: ProbeResult['functions'],
  id: number,
): Promise<ProbeResult> {
  const holds = async (sql: string): Promise<boolean> =>
    (await perform(context, session, [`SELECT to_jsonb(millrace.holds(${quoteLiteral(sql)}))`])) === true;
  const staged = analysis.stagesSql === null || (await holds(analysis.stagesSql));
  const probeSql = staged ? analysis.probeSql : analysis.singleProbeSql;
  let columns: readonly ProbeColumn[] = [];
  if (probeSql !== null) {
    const view = `millrace_data.probe${id}`;
    columns = (await perform(context, session, [
      `CREATE VIEW ${view} AS ${probeSql}`,
      `SELECT jsonb_agg(jsonb_build_object('typeOid', a.atttypid::bigint, 'typeModifier', a.atttypmod) ORDER BY a.attnum)
         FROM pg_attribute a WHERE a.attrelid = '${view}'::regclass AND a.attnum > 0`,
    ])) as ProbeColumn[];
    await perform(context, session, [`DROP VIEW ${view}`]);
  }
  const groupsHashable: boolean[] = [];
  for (const sql of analysis.hashableSql) groupsHashable.push(await holds(sql));
  return { columns, functions, groupsHashable, staged };
}

/** The compiler's promise, checked against Postgres for every view. `definition`: the view that has the query's own types. */
export async function requireSameTypes(session: CallerSession, id: number, plan: ViewPlan, definition = definitionView(id)): Promise<void> {
  const different = await session.query(
    `SELECT q.attname
       FROM pg_catalog.pg_attribute q
       LEFT JOIN pg_catalog.pg_attribute g ON g.attrelid = $2::pg_catalog.regclass AND g.attnum = q.attnum
      WHERE q.attrelid = $1::pg_catalog.regclass AND q.attnum > 0
        AND (q.attname, q.atttypid, q.atttypmod, q.attcollation) IS DISTINCT FROM (g.attname, g.atttypid, g.atttypmod, g.attcollation)`,
    [definition, gateView(id)],
    { quiet: true },
  );
  const [first] = different.rows;
  if (first !== undefined) {
    throw millraceError('internal_error', {
      message: `column "${first[0]}" of the live view would have another type than its query (${plan.reason.way})`,
    });
  }
}

/** A live view is fresh already: REFRESH has nothing to do and says so. */
export async function refreshMaterializedView(session: CallerSession, statement: RefreshMaterializedView): Promise<StatementResult> {
  const found = await findLive(session, statement.name);
  if (found !== null && (await isStreamTable(session, found.id))) {
    throw millraceError(
      'wrong_object_type',
      { name: shownName(statement.name), kind: 'materialized view' },
      { position: statement.name.at + 1 },
    );
  }
  session.notice({
    severity: 'NOTICE',
    code: '00000',
    message: `materialized view "${shownName(statement.name)}" is live: it is up to date without REFRESH`,
    ...(found?.state === 'ready' ? {} : { detail: `Its state is "${found?.state ?? 'unknown'}".` }),
  });
  return { kind: 'done', tag: 'REFRESH MATERIALIZED VIEW' };
}
