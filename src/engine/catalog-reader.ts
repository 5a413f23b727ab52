/** Reads the whole catalog for the engine. Invariant: one snapshot, so that what is read belongs together. */
import type { Client } from 'pg';
import { type ConnectionOptions, openAddress, type SealedSecrets } from '../catalog/connection-address.ts';
import type {
  BaseColumn,
  BaseState,
  BaseTable,
  LiveView,
  RelationError,
  RelationState,
  Storage,
  StorageColumn,
  StorageState,
  StreamStatus,
  StreamTable,
  TableVersion,
  VersionColumn,
} from '../catalog/model.ts';
import type { ServerAddress } from '../config.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { migrationsSql } from '../migration/catalog.ts';
import type { Migration } from '../migration/model.ts';
import { parseLsn } from '../replication/lsn.ts';
import { columnsSql, partsSql } from './base/shapes.ts';
import type { CatalogState, SinkState, SubscriptionState } from './context.ts';
import type { SourceRow } from './source-row.ts';

const catalogSql = `
SELECT jsonb_build_object(
  'strayGrants', EXISTS (SELECT FROM millrace.stray_grants()),
  'sources', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', s.id, 'name', coalesce(millrace.qualified_name(s.facade), 'source ' || s.id), 'publication', s.publication, 'slot', s.slot,
                 'status', s.status, 'system', s.system_identifier, 'timeline', s.timeline,
                 'autoResync', s.auto_resync, 'resyncRequested', s.resync_requested,
                 'there', EXISTS (SELECT FROM pg_class c WHERE c.oid = s.facade),
                 'options', coalesce(c.options, s.details -> 'options', '{}'),
                 'secrets', coalesce((SELECT jsonb_object_agg(x.id, jsonb_build_object('name', x.name, 'value', x.value))
                                        FROM millrace.secret x
                                       WHERE x.id::text IN (SELECT o.value ->> 'secret' FROM jsonb_each(c.options) o)),
                                     s.details -> 'secrets', '{}'))), '[]')
                FROM millrace.source s
                LEFT JOIN millrace.connection c ON c.id = s.connection_id),
  'storages', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', s.id, 'sourceId', s.source_id, 'originOid', s.origin_oid::bigint, 'originSchema', s.origin_schema, 'originName', s.origin_name,
                 'columns', s.columns, 'keyAttnums', s.key_attnums, 'state', s.state, 'supersedes', s.supersedes, 'extends', s.extends, 'mergedTo', s.merged_to, 'resyncs', s.resyncs, 'stale', s.stale, 'sentAs', s.sent_as, 'missed', s.missed,
                 'copySnapshot', s.copy_snapshot, 'copyLsn', s.copy_lsn,
                 'retryInMs', CASE WHEN s.state = 'failed' THEN floor(extract(epoch FROM s.retry_at - clock_timestamp()) * 1000) END,
                 'captured', to_regclass('millrace_data.d' || s.id) IS NOT NULL)), '[]')
                 FROM millrace.storage s),
  'relations', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', r.id, 'kind', r.kind, 'facade', r.facade::bigint, 'gate', r.gate::bigint, 'state', r.state, 'error', r.error,
                 'there', EXISTS (SELECT FROM pg_class c WHERE c.oid = r.facade),
                 'sourceId', v.source_id, 'storageId', v.storage_id, 'columns', v.columns,
                 'definition', lv.definition::bigint, 'defined', lv.definition IS NULL OR EXISTS (SELECT FROM pg_class c WHERE c.oid = lv.definition), 'plan', lv.plan,
                 'inputs', (SELECT jsonb_agg(i.input_id) FROM millrace.live_view_input i WHERE i.relation_id = r.id),
                 'position', (SELECT p.e::text FROM millrace.change_position p WHERE p.relation_id = r.id),
                 'captured', to_regclass('millrace_data.d' || r.id) IS NOT NULL) ORDER BY r.id), '[]')
                 FROM millrace.relation r
                 LEFT JOIN millrace.table_version v ON v.relation_id = r.id
                 LEFT JOIN millrace.live_view lv ON lv.relation_id = r.id),
  'bases', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', b.relation_id, 'tableOid', b.table_oid::bigint,
                 'lockable', EXISTS (SELECT FROM pg_class c WHERE c.oid = b.table_oid AND c.relkind IN ('r', 'p')), 'name', millrace.qualified_name(b.table_oid), 'columns', b.columns,
                 'columnsNow', ${columnsSql('b.table_oid')}, 'keyAttnums', b.key_attnums, 'identityBefore', b.identity_before, 'method', b.method, 'state', b.state, 'error', b.error,
                 'parts', b.parts, 'partsNow', ${partsSql('b.table_oid')},
                 'gated', EXISTS (SELECT FROM millrace.source_gate g WHERE g.source = b.table_oid AND g.gated),
                 'deltaAttnums', (SELECT coalesce(jsonb_agg(substr(a.attname, 2)::integer ORDER BY a.attnum), '[]')
                                    FROM pg_attribute a
                                   WHERE a.attrelid = to_regclass('millrace_data.d' || b.relation_id) AND a.attname ~ '^c' AND a.attnum > 0 AND NOT a.attisdropped),
                 'used', EXISTS (SELECT FROM millrace.live_view_input i JOIN millrace.relation r ON r.id = i.relation_id
                                  WHERE i.input_id = b.relation_id AND r.state <> 'dropped'))), '[]')
                 FROM millrace.base_table b),
  'baseCapture', EXISTS (SELECT FROM millrace.base_capture),
  'streams', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'relationId', s.relation_id, 'schedule', s.schedule, 'refreshMode', s.refresh_mode, 'status', s.status,
                 'isPopulated', s.is_populated, 'initialize', s.options ->> 'initialize' IS DISTINCT FROM 'false', 'consecutiveErrors', s.consecutive_errors,
                 'refreshRequested', s.refresh_requested, 'refreshDone', s.refresh_done, 'reinitialize', s.reinitialize,
                 'deltaLost', coalesce(s.delta_lost, (SELECT i.lost FROM millrace.immediate i WHERE i.relation_id = s.relation_id)), 'nextRefreshAt', floor(extract(epoch FROM s.next_refresh_at) * 1000),
                 'lastRefreshAt', floor(extract(epoch FROM s.last_refresh_at) * 1000),
                 'replaces', s.replaces, 'replacesWith', s.replaces_with, 'triggered', EXISTS (SELECT FROM millrace.immediate i WHERE i.relation_id = s.relation_id),
                 'plannedTypes', (SELECT coalesce(jsonb_object_agg(b.relation_id, p.types), '{}') FROM millrace.stream_table_source p JOIN millrace.base_table b ON b.table_oid = p.source
                                   WHERE p.relation_id = s.relation_id AND p.types IS NOT NULL),
                 'schema', n.nspname, 'name', c.relname)), '[]')
                 FROM millrace.stream_table s JOIN millrace.relation r ON r.id = s.relation_id
                 LEFT JOIN pg_class c ON c.oid = coalesce(r.facade, (SELECT x.facade FROM millrace.relation x WHERE x.id = s.replaces))
                 LEFT JOIN pg_namespace n ON n.oid = c.relnamespace),
  'outboxes', (SELECT coalesce(jsonb_agg(substr(c.relname, 2)::bigint), '[]')
                 FROM pg_class c
                WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^o[0-9]+$'),
  'upsertOutboxes', (SELECT coalesce(jsonb_agg(b.relation_id), '[]') FROM millrace.outbox b WHERE b.whole_since IS NULL),
  'sinks', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', s.id, 'name', s.name, 'status', s.status, 'holdTs', s.hold_ts, 'reachedVersion', p.version, 'key', s.definition -> 'key',
                 'upserts', s.definition -> 'key' <> 'null' AND (s.definition -> 'target' ->> 'type' = 'postgres' OR s.definition -> 'target' ->> 'envelope' = 'upsert') IS TRUE,
                 'versions', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                                       'version', v.version, 'relationId', v.relation_id, 'backfill', v.backfill, 'cutTs', v.cut_ts, 'columns', v.columns)
                                     ORDER BY v.version), '[]')
                                FROM millrace.sink_version v WHERE v.sink_id = s.id))), '[]')
                 FROM millrace.sink s LEFT JOIN millrace.sink_progress p ON p.sink_id = s.id),
  'subscriptions', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', s.id, 'relationId', s.relation_id, 'cutTs', s.cut_ts, 'isRead', s.pid IS NOT NULL)), '[]')
                 FROM millrace.subscription s),
  'migrations', ${migrationsSql}
) AS catalog`;

const digestFromCatalog = `md5(c.catalog::text) AS digest FROM (${catalogSql}) c`;

interface RawSource {
  id: number;
  name: string;
  publication: string;
  slot: string;
  status: string;
  system: string | null;
  timeline: number | null;
  autoResync: boolean;
  resyncRequested: boolean;
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
  extends: number | null;
  mergedTo: string[] | null;
  resyncs: number | null;
  stale: boolean;
  sentAs: string;
  missed: RelationError | null;
  copySnapshot: string | null;
  copyLsn: string | null;
  retryInMs: number | null;
  captured: boolean;
}
interface RawBase {
  id: number;
  tableOid: number;
  lockable: boolean;
  name: string | null;
  columns: BaseColumn[];
  columnsNow: BaseColumn[];
  keyAttnums: number[];
  identityBefore: string | null;
  method: BaseTable['method'];
  state: BaseState;
  error: RelationError | null;
  parts: string | null;
  partsNow: string | null;
  gated: boolean;
  deltaAttnums: number[];
  used: boolean;
}
interface RawStream {
  relationId: number;
  schedule: string | null;
  refreshMode: StreamTable['refreshMode'];
  status: StreamStatus;
  isPopulated: boolean;
  initialize: boolean;
  consecutiveErrors: number;
  refreshRequested: number;
  refreshDone: number;
  reinitialize: boolean;
  deltaLost: string | null;
  nextRefreshAt: number | null;
  lastRefreshAt: number | null;
  replaces: number | null;
  replacesWith: number | null;
  triggered: boolean;
  plannedTypes: Record<string, Record<string, string>>;
  schema: string | null;
  name: string | null;
}
interface RawRelation {
  id: number;
  kind: 'table' | 'view' | 'base' | 'clock';
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
  position: string | null;
  captured: boolean;
}

export interface ReadCatalog extends CatalogState {
  /** Relations whose facade was dropped outside Millrace, or marked dropped: to be cleared away. */
  readonly gone: readonly { readonly id: number; readonly kind: 'table' | 'view' }[];
  /** Views whose definition was dropped outside Millrace while the facade is still there. */
  readonly undefinedViews: readonly number[];
  readonly goneSources: readonly SourceRow[];
  readonly goneSinks: readonly SinkState[];
  /** Slot and publication for base tables have been made. */
  readonly baseCapture: boolean;
  /** Base tables that no view reads any more. */
  readonly unusedBases: readonly BaseTable[];
  readonly migrations: readonly Migration[];
  /** Owners of facades have changed: gates are to be read by others. */
  readonly strayGrants: boolean;
  /** Of all that was read: another catalog has another digest. */
  readonly digest: string;
}

interface RawCatalog {
  strayGrants: boolean;
  outboxes: number[];
  upsertOutboxes: number[];
  sinks: SinkState[];
  subscriptions: SubscriptionState[];
  migrations: Migration[];
  sources: RawSource[];
  storages: RawStorage[];
  relations: RawRelation[];
  bases: RawBase[];
  streams: RawStream[];
  baseCapture: boolean;
}

const emptyCatalog: RawCatalog = {
  strayGrants: false,
  outboxes: [],
  upsertOutboxes: [],
  sinks: [],
  subscriptions: [],
  migrations: [],
  sources: [],
  storages: [],
  relations: [],
  bases: [],
  streams: [],
  baseCapture: false,
};

export async function readCatalog(admin: Client, secretKey: string): Promise<ReadCatalog> {
  const text = `SELECT c.catalog, ${digestFromCatalog}`;
  const result = await admin.query<{ catalog: RawCatalog; digest: string }>({ name: 'catalog', text });
  const { catalog: raw, digest } = result.rows[0] ?? { catalog: emptyCatalog, digest: '' };
  const captured = new Set<number>();
  for (const row of [...raw.storages, ...raw.relations]) if (row.captured) captured.add(row.id);

  const tables = new Map<number, TableVersion>();
  const views = new Map<number, LiveView<ViewPlan>>();
  const gone: { id: number; kind: 'table' | 'view' }[] = [];
  const undefinedViews: number[] = [];
  const replaces = new Map(raw.streams.map((stream) => [stream.relationId, stream.replaces]));
  for (const row of raw.relations) {
    if (row.kind === 'base' || row.kind === 'clock') continue;
    const common = { id: row.id, facade: row.facade, gate: row.gate, state: row.state, error: row.error };
    const replaced = replaces.get(row.id) ?? null;
    const orphaned = replaced !== null && raw.relations.every(({ id, state, there }) => id !== replaced || state === 'dropped' || !there);
    if (row.state === 'dropped' || (row.facade !== null && !row.there) || orphaned) gone.push({ id: row.id, kind: row.kind });
    else if (row.kind === 'table') {
      tables.set(row.id, {
        ...common,
        kind: 'table',
        sourceId: row.sourceId ?? 0,
        storageId: row.storageId ?? 0,
        columns: row.columns ?? [],
      });
    } else if (row.plan !== null) {
      if (!row.defined && row.definition !== null) undefinedViews.push(row.id);
      views.set(row.id, {
        ...common,
        kind: 'view',
        definition: row.definition ?? 0,
        plan: row.plan,
        inputs: row.inputs ?? [],
        position: row.position === null ? null : BigInt(row.position),
      });
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
    views: inputsFirst(views),
    captured,
    baseCapture: raw.baseCapture,
    bases: new Map(raw.bases.map((row) => [row.id, baseTable(row)])),
    unusedBases: raw.bases.filter((row) => !row.used).map(baseTable),
    streams: new Map(
      raw.streams.map((row) => [row.relationId, { ...row, schema: row.schema ?? '', name: row.name ?? '' } satisfies StreamTable]),
    ),
    outboxes: new Set(raw.outboxes),
    upsertOutboxes: new Set(raw.upsertOutboxes),
    sinks: new Map(raw.sinks.filter(({ status }) => status !== 'dropped').map((sink) => [sink.id, sink])),
    subscriptions: new Map(raw.subscriptions.map((subscription) => [subscription.id, subscription])),
    migrations: raw.migrations,
    strayGrants: raw.strayGrants,
    digest,
    goneSinks: raw.sinks.filter(({ status }) => status === 'dropped'),
    gone,
    undefinedViews,
  };
}

/** What `digest` would be if the catalog were read now: a hundredth of the answer, and nothing to parse. */
export async function catalogDigest(admin: Client): Promise<string> {
  const result = await admin.query<{ digest: string }>({ name: 'catalog digest', text: `SELECT ${digestFromCatalog}` });
  return result.rows[0]?.digest ?? '';
}

/** Nothing of it waits for anything: as long as it stays as it is there is nothing to do. Stream tables are due by the time. */
export function isSettled(catalog: ReadCatalog): boolean {
  const { storages, tables, views, sinks, bases, streams } = catalog;
  const cleared = [catalog.gone, catalog.undefinedViews, catalog.goneSources, catalog.goneSinks, catalog.unusedBases];
  const shown = new Set([...tables.values()].map(({ storageId }) => storageId));
  return (
    cleared.every(({ length }) => length === 0) &&
    !catalog.strayGrants &&
    bases.size === 0 &&
    streams.size === 0 &&
    [...storages.values()].every(({ id, state, extends: other }) => state === 'live' && other === null && shown.has(id)) &&
    [...tables.values(), ...views.values()].every(({ state }) => state === 'ready') &&
    [...sinks.values()].every(({ versions }) => versions.length === 1)
  );
}

/** What a view reads comes before it. */
function inputsFirst(views: ReadonlyMap<number, LiveView<ViewPlan>>): Map<number, LiveView<ViewPlan>> {
  const ordered = new Map<number, LiveView<ViewPlan>>();
  const visiting = new Set<number>();
  const visit = (view: LiveView<ViewPlan>): void => {
    if (ordered.has(view.id) || visiting.has(view.id)) return;
    visiting.add(view.id);
    for (const input of view.inputs) {
      const read = views.get(input);
      if (read !== undefined) visit(read);
    }
    ordered.set(view.id, view);
  };
  for (const view of views.values()) visit(view);
  return ordered;
}

function baseTable({ used: _, ...row }: RawBase): BaseTable {
  return row;
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
    timeline: row.timeline,
    autoResync: row.autoResync,
    resyncRequested: row.resyncRequested,
    addressKey: JSON.stringify([row.options, row.secrets]),
    address,
    addressProblem,
  };
}
