/** Reads the whole catalog for the engine. Invariant: one snapshot, so that what is read belongs together. */
import type { Client } from 'pg';
import { type ConnectionOptions, openAddress, type SealedSecrets } from '../catalog/connection-address.ts';
import type {
  LiveView,
  RelationError,
  RelationState,
  Storage,
  StorageColumn,
  StorageState,
  TableVersion,
  VersionColumn,
} from '../catalog/model.ts';
import type { ServerAddress } from '../config.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { parseLsn } from '../replication/lsn.ts';
import type { CatalogState } from './context.ts';
import type { SourceRow } from './source-row.ts';

const catalogSql = `
SELECT jsonb_build_object(
  'sources', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', s.id, 'name', coalesce(millrace.qualified_name(s.facade), 'source ' || s.id), 'publication', s.publication, 'slot', s.slot,
                 'status', s.status, 'system', s.system_identifier, 'lsn', p.lsn,
                 'there', EXISTS (SELECT FROM pg_class c WHERE c.oid = s.facade),
                 'options', coalesce(c.options, s.details -> 'options', '{}'),
                 'secrets', coalesce((SELECT jsonb_object_agg(x.id, jsonb_build_object('name', x.name, 'value', x.value))
                                        FROM millrace.secret x
                                       WHERE x.id::text IN (SELECT o.value ->> 'secret' FROM jsonb_each(c.options) o)),
                                     s.details -> 'secrets', '{}'))), '[]')
                FROM millrace.source s
                LEFT JOIN millrace.connection c ON c.id = s.connection_id
                LEFT JOIN millrace.source_progress p ON p.source_id = s.id),
  'storages', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', s.id, 'sourceId', s.source_id, 'originOid', s.origin_oid::bigint, 'originSchema', s.origin_schema, 'originName', s.origin_name,
                 'columns', s.columns, 'keyAttnums', s.key_attnums, 'state', s.state, 'supersedes', s.supersedes,
                 'copySnapshot', s.copy_snapshot, 'copyLsn', s.copy_lsn,
                 'captured', to_regclass('millrace_data.d' || s.id) IS NOT NULL)), '[]')
                 FROM millrace.storage s),
  'relations', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', r.id, 'kind', r.kind, 'facade', r.facade::bigint, 'gate', r.gate::bigint, 'state', r.state, 'error', r.error,
                 'there', EXISTS (SELECT FROM pg_class c WHERE c.oid = r.facade),
                 'sourceId', v.source_id, 'storageId', v.storage_id, 'columns', v.columns,
                 'definition', lv.definition::bigint, 'defined', lv.definition IS NULL OR EXISTS (SELECT FROM pg_class c WHERE c.oid = lv.definition), 'plan', lv.plan,
                 'inputs', (SELECT jsonb_agg(i.input_id) FROM millrace.live_view_input i WHERE i.relation_id = r.id),
                 'captured', to_regclass('millrace_data.d' || r.id) IS NOT NULL) ORDER BY r.id), '[]')
                 FROM millrace.relation r
                 LEFT JOIN millrace.table_version v ON v.relation_id = r.id
                 LEFT JOIN millrace.live_view lv ON lv.relation_id = r.id)
) AS catalog`;

interface RawSource {
  id: number;
  name: string;
  publication: string;
  slot: string;
  status: string;
  system: string | null;
  lsn: string | null;
  there: boolean;
  options: ConnectionOptions;
  secrets: SealedSecrets;
}
interface RawStorage {
  id: number;
  sourceId: number;
  originOid: number;
  originSchema: string;
  originName: string;
  columns: StorageColumn[];
  keyAttnums: number[];
  state: StorageState;
  supersedes: number | null;
  copySnapshot: string | null;
  copyLsn: string | null;
  captured: boolean;
}
interface RawRelation {
  id: number;
  kind: 'table' | 'view';
  facade: number | null;
  gate: number;
  state: RelationState;
  error: RelationError | null;
  there: boolean;
  sourceId: number | null;
  storageId: number | null;
  columns: VersionColumn[] | null;
  definition: number | null;
  defined: boolean;
  plan: ViewPlan | null;
  inputs: number[] | null;
  captured: boolean;
}

export interface ReadCatalog extends CatalogState {
  /** Relations whose facade was dropped outside Millrace, or marked dropped: to be cleared away. */
  readonly gone: readonly { readonly id: number; readonly kind: 'table' | 'view' }[];
  /** Views whose definition was dropped outside Millrace while the facade is still there. */
  readonly undefinedViews: readonly number[];
  readonly goneSources: readonly SourceRow[];
}

export async function readCatalog(admin: Client, secretKey: string): Promise<ReadCatalog> {
  const result = await admin.query<{ catalog: { sources: RawSource[]; storages: RawStorage[]; relations: RawRelation[] } }>(catalogSql);
  const raw = result.rows[0]?.catalog ?? { sources: [], storages: [], relations: [] };
  const captured = new Set<number>();
  for (const row of [...raw.storages, ...raw.relations]) if (row.captured) captured.add(row.id);

  const tables = new Map<number, TableVersion>();
  const views = new Map<number, LiveView<ViewPlan>>();
  const gone: { id: number; kind: 'table' | 'view' }[] = [];
  const undefinedViews: number[] = [];
  for (const row of raw.relations) {
    const base = { id: row.id, facade: row.facade, gate: row.gate, state: row.state, error: row.error };
    if (row.state === 'dropped' || (row.facade !== null && !row.there)) gone.push({ id: row.id, kind: row.kind });
    else if (row.kind === 'table') {
      tables.set(row.id, {
        ...base,
        kind: 'table',
        sourceId: row.sourceId ?? 0,
        storageId: row.storageId ?? 0,
        columns: row.columns ?? [],
      });
    } else if (row.plan !== null) {
      if (!row.defined) undefinedViews.push(row.id);
      views.set(row.id, { ...base, kind: 'view', definition: row.definition ?? 0, plan: row.plan, inputs: row.inputs ?? [] });
    }
  }
  const sources = raw.sources.map((row) => ({ row: sourceRow(row, secretKey), dropped: row.status === 'dropped' || !row.there }));
  return {
    sources: new Map(sources.filter((source) => !source.dropped).map(({ row }) => [row.id, row])),
    goneSources: sources.filter((source) => source.dropped).map(({ row }) => row),
    storages: new Map(
      raw.storages.map((row) => [
        row.id,
        { ...row, copyLsn: row.copyLsn === null ? null : parseLsn(row.copyLsn) } satisfies Storage & { captured: boolean },
      ]),
    ),
    tables,
    views,
    captured,
    gone,
    undefinedViews,
  };
}

function sourceRow(row: RawSource, secretKey: string): SourceRow {
  let address: ServerAddress | null = null;
  let addressProblem: string | null = null;
  try {
    address = openAddress(secretKey, row.options, row.secrets);
  } catch (error) {
    addressProblem = error instanceof Error ? error.message : String(error);
  }
  return {
    id: row.id,
    name: row.name,
    publication: row.publication,
    slot: row.slot,
    status: row.status,
    systemIdentifier: row.system,
    lsn: row.lsn === null ? null : parseLsn(row.lsn),
    addressKey: JSON.stringify([row.options, row.secrets]),
    address,
    addressProblem,
  };
}
