/**
 * What a view's query reads, as the view compiler wants to know it: for those who make views and those who make them anew.
 * Invariant: relations are found by the names that Postgres prints, and known by OID and id.
 */
import type { ViewPlan } from '../ivm/plans.ts';
import type { LiveRelation, PlainView, RelationLookup } from '../ivm/types.ts';
import { asLiveRelation } from '../ivm/view-plan.ts';
import type { VersionColumn } from './model.ts';
import { storageColumn } from './model.ts';
import { storageKey } from './storage-ddl.ts';

export interface ReadRelation {
  readonly oid: string;
  readonly schema: string;
  readonly name: string;
  readonly kind: 'table' | 'view' | 'plain view' | 'ordinary';
  readonly query: string | null;
  readonly relationId: number | null;
  readonly storageId: number | null;
  readonly columns: readonly VersionColumn[] | null;
  readonly keyAttnums: readonly number[] | null;
  readonly plan: ViewPlan | null;
  /** Its storage (OID), when it is a stream table that triggers keep. */
  readonly immediateStorage: string | null;
  /** What its columns are called now: users may rename those of a facade. */
  readonly names: readonly string[];
}

/** Every relation that a view reads, plain views looked through, as ReadRelation[]. `given`: a jsonb expression, {"oid": of the view}. */
export const relationsReadSql = (given: string): string =>
  `
SELECT coalesce(jsonb_agg(jsonb_build_object(
         'oid', r.relation::text, 'schema', r.schema, 'name', r.name, 'kind', r.kind, 'query', r.query, 'relationId', r.relation_id, 'storageId', r.storage_id,
         'columns', r.columns, 'keyAttnums', r.key_attnums, 'plan', r.plan,
         'immediateStorage', (SELECT to_regclass('millrace_data.s' || t.relation_id)::oid::text
                                FROM millrace.stream_table t WHERE t.relation_id = r.relation_id AND t.refresh_mode = 'IMMEDIATE'),
         'names', (SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = r.relation AND a.attnum > 0))), '[]')
  FROM millrace.relations_read((${given} ->> 'oid')::oid) r`.trim();

/** Kinds of functions by name, as printed in a view: without schema for pg_catalog. `given`: a jsonb expression, {"names": [..]}. Null without any. */
export const functionKindsSql = (given: string): string =>
  `
SELECT jsonb_object_agg(k.shown, jsonb_build_object('aggregate', k.aggregate, 'setReturning', k.returns_set))
  FROM (SELECT f.shown, bool_or(p.prokind = 'a') AS aggregate, bool_or(p.proretset) AS returns_set
          FROM jsonb_array_elements_text(${given} -> 'names') AS f(shown)
          JOIN (SELECT n.nspname, x.* FROM pg_proc x JOIN pg_namespace n ON n.oid = x.pronamespace) p
            ON p.nspname || '.' || p.proname = f.shown OR p.nspname = 'pg_catalog' AND p.proname = f.shown
         GROUP BY f.shown) k`.trim();

/** The compiler's lookup over what was read: names are printed with their schema, but for those of pg_catalog. */
export function relationLookup(read: readonly ReadRelation[]): RelationLookup {
  const byName = new Map(read.map((relation) => [JSON.stringify([relation.schema, relation.name]), relation]));
  return (schema, name) => {
    const found = byName.get(JSON.stringify([schema ?? 'pg_catalog', name]));
    return found === undefined ? undefined : described(found);
  };
}

function described(relation: ReadRelation): LiveRelation | PlainView | undefined {
  switch (relation.kind) {
    case 'table':
      return {
        kind: 'live',
        id: relation.relationId ?? 0,
        key: storageKey({ keyAttnums: relation.keyAttnums ?? [] }),
        columns: (relation.columns ?? []).map((column, index) => ({
          name: relation.names[index] ?? column.name,
          expression: `s.${storageColumn(column.attnum)}`,
        })),
      };
    case 'view': {
      if (relation.plan === null) return undefined;
      const live = asLiveRelation(relation.plan, relation.relationId ?? 0);
      return { ...live, columns: live.columns.map((column, index) => ({ ...column, name: relation.names[index] ?? column.name })) };
    }
    case 'plain view':
      return { kind: 'view', query: relation.query ?? '' };
    case 'ordinary':
      return undefined;
  }
}
