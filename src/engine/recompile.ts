/**
 * Compiling a live view anew, from the query as Postgres keeps it, when types below it have changed.
 * Invariant: the same compiler and the same questions as when it was made; nothing is decided by what it was before.
 */
import { definitionView, storageTable } from '../catalog/model.ts';
import { functionKindsSql, type ReadRelation, relationLookup, relationsReadSql } from '../catalog/view-inputs.ts';
import { analyzeView, viewFunctions } from '../ivm/analyze.ts';
import { clock } from '../ivm/clock-relation.ts';
import { planView } from '../ivm/plan-view.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { loadViewParser } from '../ivm/source-text.ts';
import type { FunctionKind, ProbeColumn } from '../ivm/types.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { quoteLiteral } from '../sql/quote.ts';

/** Throws MillraceError when it can no longer be kept, PostgresError when the query has become wrong. */
export async function compileView(session: RawConnection, viewId: number): Promise<ViewPlan> {
  await loadViewParser();
  const value = async (sql: string): Promise<string | null> => (await session.query(sql)).at(-1)?.rows[0]?.[0] ?? null;
  const json = async (sql: string): Promise<unknown> => JSON.parse((await value(sql)) ?? 'null');
  const given = (parameters: Readonly<Record<string, unknown>>): string => `${quoteLiteral(JSON.stringify(parameters))}::jsonb`;
  const view = quoteLiteral(definitionView(viewId));
  const definition = (await value(`SELECT millrace.definition_of(${view}::regclass)`)) ?? '';
  const oid = await value(`SELECT ${view}::regclass::oid`);
  const read = (await json(relationsReadSql(given({ oid })))) as ReadRelation[];
  const storages = new Map(
    read.flatMap(({ relationId, storageId }) => (relationId === null ? [] : [[relationId, storageId ?? relationId]])),
  );
  const lookup = relationLookup(read);
  const names = viewFunctions(definition, lookup);
  const functions = names.length === 0 ? {} : ((await json(functionKindsSql(given({ names })))) as Record<string, FunctionKind> | null);
  const analysis = analyzeView(definition, lookup, (input) => storageTable(storages.get(input) ?? input), functions ?? {}, clock);
  const holds = async (sql: string): Promise<boolean> => (await value(`SELECT millrace.holds(${quoteLiteral(sql)})`)) === 't';
  const staged = analysis.stagesSql === null || (await holds(analysis.stagesSql));
  const probeSql = staged ? analysis.probeSql : analysis.singleProbeSql;
  let columns: readonly ProbeColumn[] = [];
  if (probeSql !== null) {
    const probe = `millrace_data.probe${viewId}`;
    await session.query(`CREATE VIEW ${probe} AS ${probeSql}`);
    columns = (await json(
      `SELECT jsonb_agg(jsonb_build_object('typeOid', a.atttypid::bigint, 'typeModifier', a.atttypmod) ORDER BY a.attnum)
         FROM pg_attribute a WHERE a.attrelid = '${probe}'::regclass AND a.attnum > 0`,
    )) as ProbeColumn[];
    await session.query(`DROP VIEW ${probe}`);
  }
  const groupsHashable: boolean[] = [];
  for (const sql of analysis.hashableSql) groupsHashable.push(await holds(sql));
  return planView(analysis, { columns, functions: functions ?? {}, groupsHashable, staged });
}
