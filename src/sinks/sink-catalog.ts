/** The sinks of a database as their delivery has to know them. Invariant: one snapshot; secrets stay sealed until a target is opened. */
import type { Client } from 'pg';
import type { ConnectionOptions, SealedSecrets } from '../catalog/connection-address.ts';
import type { SinkColumn, SinkDefinition } from '../catalog/sink-model.ts';

export interface StoredConnection {
  readonly id: string;
  readonly type: string;
  readonly options: ConnectionOptions;
}

export interface StoredSink {
  readonly id: number;
  /** Qualified and quoted, for messages. */
  readonly name: string;
  readonly status: string;
  readonly paused: boolean;
  readonly definition: SinkDefinition;
  /** By id: its own, and those of schema registries. */
  readonly connections: Readonly<Record<string, StoredConnection>>;
  readonly connectionId: string | null;
  readonly secrets: SealedSecrets;
  /** Says whether anything of it has changed. */
  readonly fingerprint: string;
}

const sinksSql = `
SELECT s.id::integer AS id, coalesce(format('%I.%I', n.nspname, s.name), s.name) AS name, s.status, s.paused, s.definition, s.connection_id::text AS connection_id,
       (SELECT jsonb_object_agg(c.id, jsonb_build_object('id', c.id::text, 'type', c.type, 'options', c.options))
          FROM millrace.connection c
         WHERE c.id = s.connection_id OR c.id::text IN (SELECT jsonb_path_query(s.definition, '$.**.registryId') #>> '{}')) AS connections,
       (SELECT jsonb_object_agg(x.id, jsonb_build_object('name', x.name, 'value', x.value))
          FROM millrace.secret x
         WHERE x.id::text IN (SELECT o.value ->> 'secret' FROM millrace.connection c, jsonb_each(c.options) o
                               WHERE c.id = s.connection_id OR c.id::text IN (SELECT jsonb_path_query(s.definition, '$.**.registryId') #>> '{}')
                              UNION ALL SELECT s.definition #>> '{target,secretId}')) AS secrets
  FROM millrace.sink s
  LEFT JOIN pg_namespace n ON n.oid = s.namespace
 WHERE s.status <> 'dropped'
 ORDER BY s.id`;

interface RawSink {
  id: number;
  name: string;
  status: string;
  paused: boolean;
  definition: SinkDefinition;
  connection_id: string | null;
  connections: Record<string, StoredConnection> | null;
  secrets: SealedSecrets | null;
}

export async function readSinks(client: Client): Promise<readonly StoredSink[]> {
  const { rows } = await client.query<RawSink>(sinksSql);
  return rows.map((row) => ({
    id: row.id,
    name: row.name,
    status: row.status,
    paused: row.paused,
    definition: row.definition,
    connections: row.connections ?? {},
    connectionId: row.connection_id,
    secrets: row.secrets ?? {},
    fingerprint: JSON.stringify([row.definition, row.connections, row.secrets]),
  }));
}

/** What a version of a sink reads. */
export interface StoredVersion {
  readonly version: number;
  readonly relationId: number;
  readonly columns: readonly SinkColumn[];
}

export async function readVersion(client: Client, sinkId: number, version: number): Promise<StoredVersion | null> {
  const { rows } = await client.query<StoredVersion>(
    'SELECT version, relation_id::integer AS "relationId", columns FROM millrace.sink_version WHERE sink_id = $1 AND version = $2',
    [sinkId, version],
  );
  return rows[0] ?? null;
}
