/**
 * Relations that can no longer be read.
 * Invariant: an error is set together with the gate that raises it, for the relation and for every live view that reads it,
 * in one transaction; everything else goes on.
 */
import { gateView, type RelationError, type RelationState, storageTable } from '../catalog/model.ts';
import { gateSql, tableGate } from '../catalog/storage-ddl.ts';
import { visibleColumns } from '../ivm/view-plan.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { type CatalogState, storageOf } from './context.ts';

/** The gate of a relation for a state. */
export function relationGate(
  state: CatalogState,
  relationId: number,
  relationState: RelationState,
  storageId = storageOf(state, relationId),
): string {
  const table = state.tables.get(relationId);
  if (table !== undefined) return tableGate(relationId, storageId, table.columns, relationState);
  const view = state.views.get(relationId);
  if (view === undefined) throw new Error(`no live relation ${relationId} for gate ${gateView(relationId)}`);
  const list = visibleColumns(view.plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  return gateSql(relationId, list, `${storageTable(relationId)} s`, relationState);
}

/** Live views that read these relations, at any depth. */
export function dependentViews(state: CatalogState, relationIds: Iterable<number>): number[] {
  const reached = new Set(relationIds);
  const dependents: number[] = [];
  for (const view of state.views.values()) {
    if (reached.has(view.id) || !view.inputs.some((input) => reached.has(input) || reached.has(heldView(state, input) ?? input))) continue;
    reached.add(view.id);
    dependents.push(view.id);
  }
  return dependents;
}

/** The stream table in IMMEDIATE mode whose storage is this base table; null: it is a user's. */
export function heldView(state: Pick<CatalogState, 'bases'>, input: number): number | null {
  const held = /^millrace_data\.s(\d+)$/.exec(state.bases.get(input)?.name ?? '')?.[1];
  return held === undefined ? null : Number(held);
}

/** Statements that put a relation and what reads it into the error state. Relations already in error keep their first error, also one of the same transaction. */
export function failRelation(state: CatalogState, relationId: number, error: RelationError): string[] {
  const statements: string[] = [];
  for (const id of [relationId, ...dependentViews(state, [relationId])]) {
    const relation = state.tables.get(id) ?? state.views.get(id);
    if (relation === undefined || relation.state === 'error') continue;
    const stored: RelationError = id === relationId ? error : { ...error, cause: error.cause ?? relationId };
    statements.push(
      relationGate(state, id, 'error'),
      `UPDATE millrace.relation SET state = 'error', error = ${quoteLiteral(JSON.stringify(stored))}::jsonb, state_since = now()
        WHERE id = ${id} AND state NOT IN ('dropped', 'error')`,
    );
  }
  return statements;
}

/** Versions that can be read again, and the views that were not kept because of them: those are filled anew. */
export function revived(state: CatalogState, tables: ReadonlySet<number>): string[] {
  const views = dependentViews(state, tables).filter((id) => {
    const view = state.views.get(id);
    return view?.state === 'error' && tables.has(view.error?.cause ?? 0);
  });
  const ready = 'error = NULL, state_since = now()';
  return [
    ...[...tables].flatMap((id) => [
      relationGate(state, id, 'ready'),
      `UPDATE millrace.relation SET state = 'ready', ${ready} WHERE id = ${id} AND state = 'error'`,
    ]),
    ...views.flatMap((id) => [
      relationGate(state, id, 'pending'),
      `UPDATE millrace.relation SET state = 'pending', ${ready} WHERE id = ${id} AND state = 'error'`,
    ]),
  ];
}

/** What is said of a version some of whose rows have come or gone without the origin's telling. */
export function missedError(options: { readonly reference: string; readonly problem: string; readonly source: string }): RelationError {
  const { reference, problem, source } = options;
  return {
    code: '55000',
    message: `source table ${reference} ${problem}`,
    detail: 'The origin sends no rows for that.',
    hint: `ALTER SOURCE ${source} RESYNC;`,
    resync: true,
  };
}

/** What is said of a version whose column was written anew at the origin, perhaps with other values. `type`: the type it has got; null: it kept its own. */
export function rewrittenError(options: {
  readonly reference: string;
  readonly source: string;
  readonly name: string;
  readonly type: string | null;
  readonly isMendable: boolean;
}): RelationError {
  const { reference, source, name, type, isMendable } = options;
  return {
    code: '42703',
    message: `source table schema has been altered: column "${name}" of ${reference} was written anew${type === null ? '' : ` as ${type}`}`,
    detail: 'The origin sends no rows for ALTER TABLE .. TYPE .. USING, so what they hold now is not known here; other tables go on.',
    hint: isMendable
      ? `ALTER SOURCE ${source} RESYNC;`
      : `DROP TABLE {relation} CASCADE; CREATE TABLE {relation} FROM SOURCE ${source} (REFERENCE ${reference});`,
    ...(isMendable ? { resync: true } : {}),
  };
}

/** What is said when the table is gone, or a column is not published: it may come back. */
export function absentError(options: { readonly reference: string; readonly problem: string; readonly source: string }): RelationError {
  const { reference, problem, source } = options;
  return {
    ...alteredError(options),
    hint: `When ${reference} has it again: ALTER SOURCE ${source} RESYNC; else: DROP TABLE {relation} CASCADE;`,
    resync: true,
    message: `source table schema has been altered: ${problem}`,
  };
}

/** What is said of a version whose column is gone at the origin. `{relation}` in the hint is filled with the relation's name when it is read. */
export function alteredError(options: { readonly reference: string; readonly problem: string; readonly source: string }): RelationError {
  return {
    code: '42703',
    message: `source table schema has been altered: ${options.problem}`,
    detail: `The table no longer has what it was created with; other tables made from ${options.reference} go on.`,
    hint: `DROP TABLE {relation} CASCADE; CREATE TABLE {relation} FROM SOURCE ${options.source} (REFERENCE ${options.reference});`,
  };
}
