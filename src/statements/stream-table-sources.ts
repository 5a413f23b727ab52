/**
 * What a stream table's query reads of this database: ordinary tables, and the live relations among what it reads.
 * Invariant: a source is known by OID and attnum from here on, never by name; nothing is read that row-level security would hide from
 * the caller, and nothing that Millrace's own role may not read.
 */
import { storageColumn, storageTable } from '../catalog/model.ts';
import { type ReadRelation, relationLookup } from '../catalog/view-inputs.ts';
import { millraceError } from '../errors.ts';
import { overStorage } from '../ivm/source-text.ts';
import type { LiveRelation, RelationLookup, TableName } from '../ivm/types.ts';
import { quoteIdentifier, quoteQualified } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { type CallerRole, firstRow, perform, type StatementContext } from './context.ts';
import { readRelations } from './view-inputs.ts';

interface SourceColumn {
  readonly attnum: number;
  readonly name: string;
  readonly type: string;
  readonly collation: string | null;
  /** attgenerated: s is stored, v virtual, empty neither. */
  readonly generated: string;
}

/** An ordinary table, view of another kind or foreign table that the query reads. */
export interface SourceTable {
  readonly oid: string;
  readonly schema: string;
  readonly name: string;
  /** Of its `base_table`; taken from the series of ids when there is none yet. */
  readonly id: number;
  /** It was in the catalog when it was looked up. */
  readonly registered: boolean;
  /** relkind */
  readonly kind: 'r' | 'p' | 'm' | 'f';
  readonly persistence: 'p' | 'u' | 't';
  readonly hasChildren: boolean;
  readonly isSystem: boolean;
  /** relreplident */
  readonly identity: string;
  /** A subscription writes to it. */
  readonly isSubscribed: boolean;
  /** The table it is a partition, or an inheritance child, of. */
  readonly parent: string | null;
  /** Why partitions of it cannot have the triggers of IMMEDIATE. */
  readonly unfit: string | null;
  /** Whether Millrace's role has the rights of its owner. */
  readonly owned: boolean;
  readonly keyAttnums: readonly number[];
  readonly columns: readonly SourceColumn[];
  /** attnums that the query names, plain views looked through. */
  readonly used: readonly number[];
  /** The stream table whose rows it holds: one in IMMEDIATE mode, whose rows users' transactions write, as they do a table's. */
  readonly holds: ReadRelation | null;
}

export interface Sources {
  readonly read: readonly ReadRelation[];
  readonly tables: readonly SourceTable[];
  /** Whether changes of the tables come from the WAL; else from triggers. */
  readonly streams: boolean;
  readonly lookup: RelationLookup;
  /** What stands in FROM for an input; its columns are those of the compiler. */
  readonly storage: TableName;
}

interface RawTable extends Omit<SourceTable, 'id' | 'registered' | 'schema' | 'name' | 'used' | 'holds'> {
  readonly base: number | null;
  readonly newId: number;
  readonly readable: boolean;
  readonly hiddenRows: boolean;
  readonly hasPolicies: boolean;
  readonly used: readonly number[];
}

/** Everything that the view `view` (quoted name) reads. Raises for what no stream table may read. */
export async function readSources(context: StatementContext, session: CallerSession, view: string, role: CallerRole): Promise<Sources> {
  const read = await readRelations(context, session, view);
  const ordinary = read.filter((relation) => relation.kind === 'ordinary');
  const views = read.filter((relation) => relation.kind === 'plain view').map((relation) => relation.oid);
  const raw = (await perform(
    context,
    session,
    [
      `SELECT coalesce(jsonb_agg(jsonb_build_object(
                'oid', s.relation::text, 'base', s.base_id, 'newId', CASE WHEN s.base_id IS NULL THEN nextval('millrace.object_id') ELSE 0 END,
                'kind', s.kind, 'persistence', s.persistence, 'hasChildren', s.has_children, 'isSystem', s.is_system, 'identity', s.identity,
                'isSubscribed', EXISTS (SELECT FROM pg_subscription_rel x
                                         WHERE x.srrelid = s.relation OR s.kind = 'p' AND x.srrelid IN (SELECT t.relid FROM pg_partition_tree(s.relation) t)),
                'parent', (SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = s.relation LIMIT 1),
                'unfit', CASE WHEN s.kind = 'p' AND NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user)
                              THEN 'only an event trigger tells of partitions that come and go, which the role that Millrace connects as may make as a superuser'
                              ELSE millrace.immediate_unfit(s.relation) END,
                'owned', s.owned, 'readable', s.readable, 'hiddenRows', s.hidden_rows, 'hasPolicies', s.has_policies,
                'keyAttnums', s.key_attnums, 'columns', s.columns,
                'used', (SELECT coalesce(jsonb_agg(DISTINCT d.refobjsubid), '[]')
                           FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                          WHERE (w.ev_class = ($1 ->> 'view')::regclass OR w.ev_class IN (SELECT jsonb_array_elements_text($1 -> 'views')::oid))
                            AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.relation AND d.refobjsubid > 0))), '[]')
         FROM millrace.source_tables(ARRAY(SELECT jsonb_array_elements_text($1 -> 'tables')::oid)) s`,
    ],
    {
      view,
      views,
      tables: [...ordinary.map((relation) => relation.oid), ...read.flatMap((relation) => relation.immediateStorage ?? [])],
    },
  )) as RawTable[];
  const named = new Map(ordinary.map((relation) => [relation.oid, relation]));
  const holders = new Map(read.flatMap((relation) => (relation.immediateStorage === null ? [] : [[relation.immediateStorage, relation]])));
  const tables = raw.map((table): SourceTable => {
    const identity = { id: table.base ?? table.newId, registered: table.base !== null };
    const holds = holders.get(table.oid) ?? null;
    if (holds !== null) return { ...table, ...identity, schema: 'millrace_data', name: `s${holds.relationId}`, holds };
    const { schema = '', name = '' } = named.get(table.oid) ?? {};
    requireReadable(table, { schema, name });
    return { ...table, ...identity, schema, name, holds };
  });
  await requireNoRowSecurity(session, raw, named, views.length > 0 && !role.superuser);
  const byName = new Map(
    tables.map((table) => [JSON.stringify([table.holds?.schema ?? table.schema, table.holds?.name ?? table.name]), table]),
  );
  const live = relationLookup(read);
  const storages = new Map<number, string>([
    ...read.flatMap((relation): [number, string][] =>
      relation.relationId === null ? [] : [[relation.relationId, storageTable(relation.storageId ?? relation.relationId)]],
    ),
    ...tables.map((table): [number, string] => [table.id, tableText(table)]),
  ]);
  return {
    read,
    tables,
    streams: (await firstRow(session, 'SELECT millrace.can_stream()'))?.[0] === 't',
    lookup: (schema, name) => {
      const table = byName.get(JSON.stringify([schema, name]));
      if (table !== undefined) return asInput(table);
      const found = live(schema, name);
      if (found === undefined && schema === null) throw systemCatalog(`pg_catalog.${name}`);
      return found;
    },
    storage: (input) => storages.get(input) ?? storageTable(input),
  };
}

function requireReadable(table: RawTable, named: { readonly schema: string; readonly name: string }): void {
  const shown = quoteQualified(named.schema, named.name);
  if (table.persistence === 't') {
    throw millraceError('feature_not_supported', {
      message: `temporary table ${quoteIdentifier(named.name)} cannot be a source of a stream table: one session only sees it`,
    });
  }
  if (table.isSystem) throw systemCatalog(shown);
  if (!table.readable) {
    throw millraceError('source_table_unreadable', {
      name: shown,
      hint: `As its owner: GRANT SELECT ON ${shown} TO the role that Millrace connects as (and USAGE on its schema).`,
    });
  }
  if (table.hiddenRows) {
    throw millraceError('row_security_source', {
      name: shown,
      hint: 'Let the role that Millrace connects as bypass it: ALTER ROLE ... BYPASSRLS;',
    });
  }
}

function systemCatalog(shown: string): Error {
  return millraceError('feature_not_supported', { message: `system catalog ${shown} cannot be a source of a stream table` });
}

/** Policies would have to be applied for each reader anew: the rows kept are the same for all. */
async function requireNoRowSecurity(
  session: CallerSession,
  tables: readonly RawTable[],
  named: ReadonlyMap<string, ReadRelation>,
  throughViews: boolean,
): Promise<void> {
  if (tables.length === 0) return;
  const row = await firstRow(
    session,
    'SELECT c.oid FROM pg_catalog.unnest($1::oid[]) AS c(oid) WHERE pg_catalog.row_security_active(c.oid) LIMIT 1',
    [`{${tables.map((table) => table.oid).join(',')}}`],
  );
  const oid = row?.[0] ?? (throughViews ? tables.find((table) => table.hasPolicies)?.oid : undefined);
  if (oid === undefined) return;
  const relation = named.get(oid);
  throw millraceError('row_security_source', {
    name: quoteQualified(relation?.schema ?? null, relation?.name ?? '?'),
    hint: 'Create the stream table as a role that the policies do not apply to, and put what a reader may see into views over it.',
  });
}

function asInput(table: SourceTable): LiveRelation {
  if (table.holds !== null) return heldRows(table, table.holds);
  return {
    kind: 'live',
    id: table.id,
    key: table.keyAttnums.map(storageColumn),
    columns: table.columns.map((column) => ({ name: column.name, expression: `s.${storageColumn(column.attnum)}` })),
  };
}

/** A stream table as its storage, whose columns are told by their numbers as those of any table. */
function heldRows(table: SourceTable, { plan, names }: ReadRelation): LiveRelation {
  const attnums = new Map(table.columns.map((column) => [column.name, column.attnum]));
  return {
    kind: 'live',
    id: table.id,
    key: table.keyAttnums.map(storageColumn),
    columns: (plan?.columns ?? []).map(({ name, expression }, index) => ({
      name: names[index] ?? name,
      expression: overStorage(expression, (column) => storageColumn(attnums.get(column) ?? 0)),
    })),
  };
}

/** The table with its columns under the names that storages have. */
function tableText(table: SourceTable): string {
  const columns = table.columns.map((column) => `${quoteIdentifier(column.name)} AS ${storageColumn(column.attnum)}`);
  return `(SELECT ${columns.join(', ')} FROM ${quoteQualified(table.schema, table.name)})`;
}

/** Why changes of a table cannot be had, from the WAL or (`streams` false) from triggers; null when they can. */
export function notCapturable(table: SourceTable, streams: boolean): string | null {
  const shown = `'${table.schema}.${table.name}'`;
  const typed = quoteQualified(table.schema, table.name);
  if (table.kind === 'm') return `Materialized view ${shown} cannot be used as a source in DIFFERENTIAL mode: REFRESH tells of no changes`;
  if (table.kind === 'f') return `Foreign table ${shown} cannot be used as a source in DIFFERENTIAL mode: its changes happen elsewhere`;
  if (table.hasChildren) return `Table ${shown} has inheritance children, whose rows come and go without it`;
  if (table.persistence === 'u') return `Table ${shown} is unlogged: its changes are not in the WAL; ALTER TABLE ${typed} SET LOGGED;`;
  // A replica identity, a place in a publication and a trigger that always fires are its owner's to give.
  if (!table.owned) return `Table ${shown} does not belong to the role that Millrace connects as: ALTER TABLE ${typed} OWNER TO ...;`;
  if (!streams) {
    return table.kind === 'p'
      ? `Table ${shown} is partitioned, and Millrace cannot read the WAL here (wal_level = logical and REPLICATION)`
      : null;
  }
  if (table.kind === 'p' && table.keyAttnums.length === 0) return `Table ${shown} is partitioned and has no primary key`;
  const virtual = table.columns.find((column) => column.generated === 'v');
  if (virtual !== undefined) return `Column ${quoteIdentifier(virtual.name)} of ${shown} is a virtual generated column; make it STORED`;
  return null;
}

/** Why a table cannot have the triggers that keep a stream table within the statements that write to it; null when it can. */
export function notTriggerable(table: SourceTable): string | null {
  const shown = `'${table.schema}.${table.name}'`;
  if (table.parent !== null)
    return `table ${shown} is part of ${table.parent}, and writes to that fire no statement trigger of it: read ${table.parent} instead`;
  if (table.unfit !== null) return `table ${shown} is partitioned: ${table.unfit}`;
  if (table.isSubscribed) return `table ${shown} is written by a subscription, which fires no statement triggers`;
  if (table.columns.some((column) => column.generated === 'v'))
    return `table ${shown} has virtual generated columns, which triggers are not given`;
  return notCapturable(asOneTable(table), false);
}

/** A partitioned table to those who do not mind: triggers of IMMEDIATE are on all of its tree. */
export function asOneTable(table: SourceTable): SourceTable {
  return table.kind === 'p' ? { ...table, kind: 'r' } : table;
}

/** Taken by everyone who makes stream tables, to the end of his transaction. */
export const lockBases = 'LOCK TABLE millrace.base_table IN SHARE ROW EXCLUSIVE MODE';

/**
 * Statements that register the tables, with their parameters for `perform` under `bases`. Those known already are among them: the engine
 * takes a table that nobody reads out of the catalog, and may have done so since it was looked up.
 */
export const registerBases: readonly string[] = [
  lockBases,
  `INSERT INTO millrace.relation (id, kind) SELECT (b ->> 'id')::bigint, 'base' FROM jsonb_array_elements($1 -> 'bases') b
   ON CONFLICT (id) DO NOTHING`,
  `INSERT INTO millrace.base_table (relation_id, table_oid, columns, key_attnums)
   SELECT (b ->> 'id')::bigint, (b ->> 'oid')::oid, b -> 'columns', ARRAY(SELECT jsonb_array_elements_text(b -> 'keyAttnums')::integer)
     FROM jsonb_array_elements($1 -> 'bases') b
   ON CONFLICT (relation_id) DO NOTHING`,
];

export function baseRows(tables: readonly SourceTable[]): readonly Record<string, unknown>[] {
  return tables.map(({ id, oid, columns, keyAttnums }) => ({ id, oid, columns, keyAttnums }));
}

/** What pgtrickle.pgt_dependencies shows: rows of millrace.stream_table_source. */
export function sourceRows(sources: Sources): readonly Record<string, unknown>[] {
  const ordinary = sources.tables
    .filter((table) => table.holds === null)
    .map((table) => ({
      oid: table.oid,
      type: table.kind === 'm' ? 'MATVIEW' : table.kind === 'f' ? 'FOREIGN_TABLE' : 'TABLE',
      attnums: table.used,
      names: table.columns.filter((column) => table.used.includes(column.attnum)).map((column) => column.name),
      name: quoteQualified(table.schema, table.name),
      types: Object.fromEntries(table.columns.map(({ attnum, type }) => [attnum, type])),
    }));
  const others = sources.read
    .filter((relation) => relation.kind !== 'ordinary')
    .map((relation) => ({
      oid: relation.oid,
      type: relation.kind === 'view' ? 'STREAM_TABLE' : relation.kind === 'table' ? 'TABLE' : 'VIEW',
      attnums: [],
      names: relation.names,
      name: quoteQualified(relation.schema, relation.name),
    }));
  return [...ordinary, ...others];
}

export const insertSources = `
INSERT INTO millrace.stream_table_source (relation_id, source, source_type, attnums, names, name, types)
SELECT ($1 ->> 'id')::bigint, (s ->> 'oid')::oid, s ->> 'type', ARRAY(SELECT jsonb_array_elements_text(s -> 'attnums')::integer),
       ARRAY(SELECT jsonb_array_elements_text(s -> 'names')), s ->> 'name', s -> 'types'
  FROM jsonb_array_elements($1 -> 'sources') s`.trim();
