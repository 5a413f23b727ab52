/**
 * What a change of a base table's columns means for those who read it, and how it is read. Pure.
 * Invariant: columns are known by attnum, so a rename changes nothing; a view loses its footing only with a column that it uses.
 */
import type { BaseColumn, BaseTable, RelationError, StreamTable } from '../../catalog/model.ts';
import { storageColumn } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import type { RelationMessage } from '../../replication/pgoutput.ts';
import type { Execution } from '../../replication/session-contract.ts';
import { quoteIdentifier } from '../../sql/quote.ts';
import type { BaseTarget } from './transactions.ts';

/** A base table as the catalog has it in some snapshot; `name` null: it is gone. */
export interface BaseShape {
  readonly id: number;
  readonly name: string | null;
  readonly columns: readonly BaseColumn[];
  /** Its partitions and their files; null: it has none. */
  readonly parts: string | null;
  /** Refreshes that nobody asks for are held back: what it has is not complete. */
  readonly gated?: boolean;
}

/** SQL expression of a partitioned table's partitions and their files. TRUNCATE of one, ATTACH and DETACH are in no stream, but here. */
export const partsSql = (oid: string): string =>
  `(SELECT md5(string_agg(c.oid || ':' || c.relfilenode, ',' ORDER BY c.oid)) FROM pg_catalog.pg_partition_tree(${oid}::regclass) t
     JOIN pg_catalog.pg_class c ON c.oid = t.relid WHERE t.isleaf AND c.oid <> ${oid})`;

/** SQL expression of a table's columns, as BaseColumn. */
export const columnsSql = (oid: string): string =>
  `(SELECT coalesce(jsonb_agg(jsonb_build_object('attnum', a.attnum, 'name', a.attname, 'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
              'collation', CASE WHEN a.attcollation <> t.typcollation
                THEN pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(co.collname) END) ORDER BY a.attnum), '[]')
       FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
       LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_catalog.pg_namespace n ON n.oid = co.collnamespace
      WHERE a.attrelid = ${oid} AND a.attnum > 0 AND NOT a.attisdropped)`;

/** Answers one jsonb array of BaseShape, as of its snapshot. */
export const shapesOf = (ids: readonly number[]): Execution => ({
  name: 'shapes',
  sql: `SELECT coalesce(jsonb_agg(jsonb_build_object('id', b.relation_id, 'name', millrace.qualified_name(b.table_oid),
    'parts', ${partsSql('b.table_oid')}, 'gated', EXISTS (SELECT FROM millrace.source_gate g WHERE g.source = b.table_oid AND g.gated), 'columns',
    ${columnsSql('b.table_oid')}) ORDER BY b.relation_id), '[]')
  FROM millrace.base_table b WHERE b.relation_id = ANY ($1::bigint[])`,
  params: [`{${ids.join(',')}}`],
});

/** The FROM item that stands for a base table's storage. */
export function baseStorage(shape: BaseShape): string {
  const list = shape.columns.map((column) => `${quoteIdentifier(column.name)} AS ${storageColumn(column.attnum)}`);
  return `(SELECT ${list.join(', ')} FROM ${shape.name ?? 'pg_temp.gone'})`;
}

/** Columns of an input that a plan's SQL mentions, by what the text of its parts says. */
export function usedAttnums(plan: ViewPlan, input: number): ReadonlySet<number> {
  const used = new Set<number>();
  const walk = (node: unknown): void => {
    if (typeof node !== 'object' || node === null) return;
    if (Array.isArray(node)) {
      for (const item of node) walk(item);
      return;
    }
    if ('input' in node && node.input === input && 'columns' in node && Array.isArray(node.columns)) {
      const names = 'used' in node && Array.isArray(node.used) ? new Set<unknown>(node.used) : null;
      for (const column of node.columns as { name: string; expression: string }[]) {
        if (names !== null && !names.has(column.name)) continue;
        for (const [, attnum] of column.expression.matchAll(/\bs\."?c(\d+)\b/g)) used.add(Number(attnum));
      }
      if ('key' in node && Array.isArray(node.key)) {
        for (const name of node.key) {
          const match = /^c(\d+)$/.exec(String(name));
          if (match !== null) used.add(Number(match[1]));
        }
      }
    }
    for (const value of Object.values(node)) walk(value);
  };
  walk(plan.stages);
  walk(plan.body);
  return used;
}

/**
 * Why a view over a base table can no longer be kept; null: it can. `now` null: the table is gone. Its columns must have the types that the view
 * was planned with, whatever has been noted of the table since.
 */
export function baseProblem(
  base: BaseTable,
  now: BaseShape | null,
  view: { readonly id: number; readonly plan: ViewPlan },
  streams: ReadonlyMap<number, StreamTable>,
): string | null {
  const used = usedAttnums(view.plan, base.id);
  const types = streams.get(view.id)?.plannedTypes[base.id] ?? {};
  const shown = now?.name ?? base.name ?? `table ${base.tableOid}`;
  if (now === null || now.name === null) return `a table it reads was dropped (${shownBefore(base)})`;
  for (const column of base.columns) {
    if (!used.has(column.attnum)) continue;
    const current = now.columns.find((one) => one.attnum === column.attnum);
    if (current === undefined) return `column "${column.name}" of ${shown} was dropped`;
    const before = types[column.attnum] ?? column.type;
    if (current.type !== before) return `column "${column.name}" of ${shown} changed from type ${before} to ${current.type}`;
  }
  return null;
}

/** What is to be noted of a table's columns: those there are, and dropped ones that someone still names, so that they can be told by name. */
export function notedColumns(base: BaseTable, now: readonly BaseColumn[], used: ReadonlySet<number>): BaseColumn[] {
  const dropped = base.columns.filter((column) => used.has(column.attnum) && !now.some((other) => other.attnum === column.attnum));
  return [...now, ...dropped].sort((a, b) => a.attnum - b.attnum);
}

/** Columns of a base table that any view uses. */
export function usedByAny(
  views: Iterable<{ readonly plan: ViewPlan; readonly inputs: readonly number[] }>,
  baseId: number,
): ReadonlySet<number> {
  const used = new Set<number>();
  for (const view of views) if (view.inputs.includes(baseId)) for (const attnum of usedAttnums(view.plan, baseId)) used.add(attnum);
  return used;
}

/** Same columns under the same names with the same types. */
export const sameColumns = (known: readonly BaseColumn[], now: readonly BaseColumn[]): boolean =>
  known.length === now.length &&
  known.every((column, i) => {
    const other = now[i];
    return other !== undefined && column.attnum === other.attnum && column.name === other.name && column.type === other.type;
  });

const shownBefore = (base: BaseTable): string => `its columns were ${base.columns.map((column) => column.name).join(', ')}`;

/** The error of a stream table whose base table lost what it uses. `{relation}` is filled with its name when it is read. */
export function baseError(problem: string, name: string): RelationError {
  return {
    code: '42703',
    message: `stream table is suspended: ${problem}`,
    detail: 'What it holds was computed for the table as it was; other stream tables over the same table go on.',
    hint: `SELECT pgtrickle.reinitialize_stream_table('${name}'); if the query can be run on the table as it is now, else SELECT pgtrickle.alter_stream_table('${name}', query => $$SELECT ...$$); with one that can, or SELECT pgtrickle.drop_stream_table('${name}');`,
  };
}

export interface TargetFacts {
  readonly id: number;
  /** Columns as they were when last seen, and as they are. */
  readonly known: readonly BaseColumn[];
  readonly now: readonly BaseColumn[];
  /** Columns of the delta table that take values, with their types. */
  readonly delta: readonly { readonly attnum: number; readonly type: string }[];
  /** Its columns that are computed from those. */
  readonly computed: readonly number[];
}

/** Finds the places of the delta table's columns in a Relation message. `types` are the formatted types of its columns, in order. */
export function targetOf(facts: TargetFacts, message: Pick<RelationMessage, 'columns'>, types: readonly string[]): BaseTarget {
  const attnumOf = new Map<string, number>();
  for (const column of facts.known) attnumOf.set(column.name, column.attnum);
  // As it is now goes before as it was: the name may belong to another column by now.
  for (const column of facts.now) attnumOf.set(column.name, column.attnum);
  const placeOf = new Map<number, number>();
  let last = 0;
  let unusable: string | null = null;
  message.columns.forEach((column, place) => {
    const attnum = attnumOf.get(column.name);
    if (attnum === undefined) return;
    // The message has columns in order of attnum; another order tells that names have moved from column to column since.
    if (attnum <= last) unusable = 'its columns exchanged names';
    last = attnum;
    placeOf.set(attnum, place);
  });
  const found = facts.delta.filter((column) => {
    const place = placeOf.get(column.attnum);
    return place !== undefined && types[place] === column.type;
  });
  return {
    baseId: facts.id,
    attnums: found.map((column) => column.attnum),
    places: found.map((column) => placeOf.get(column.attnum) ?? -1),
    computed: facts.computed,
    unusable,
  };
}
