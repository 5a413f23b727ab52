/**
 * What an origin allows: everything replication needs, asked in one go.
 * Invariant: finds facts and changes nothing; turning a finding into an error with a hint is the caller's.
 */
import type pg from 'pg';

export interface PublicationFacts {
  readonly name: string;
  readonly allTables: boolean;
  readonly insert: boolean;
  readonly update: boolean;
  readonly delete: boolean;
  readonly truncate: boolean;
  /** publish_via_partition_root: changes of partitions arrive as changes of the partitioned table. */
  readonly viaRoot: boolean;
}

export interface OriginFacts {
  /** As server_version_num, e.g. 180004. */
  readonly versionNumber: number;
  readonly version: string;
  readonly walLevel: string;
  readonly role: string;
  /** By attribute, superuser, or membership in rds_replication. */
  readonly mayReplicate: boolean;
  readonly superuser: boolean;
  /** BYPASSRLS or superuser. */
  readonly bypassesRowSecurity: boolean;
  readonly maxReplicationSlots: number;
  readonly usedReplicationSlots: number;
  readonly maxWalSenders: number;
  readonly usedWalSenders: number;
  /** ms, 0 when disabled. */
  readonly walSenderTimeoutMs: number;
  readonly database: string;
  readonly databaseOid: number;
  readonly encoding: string;
  /** Undefined when the role may not ask. */
  readonly systemIdentifier: string | undefined;
  readonly timeline: number | undefined;
  /** A standby: decoding works from 16 on, event triggers and publications are made on its primary. */
  readonly inRecovery: boolean;
  /** Undefined when none of the name exists, or none was asked for. */
  readonly publication: PublicationFacts | undefined;
}

export type OriginFinding =
  | { readonly kind: 'version'; readonly version: string }
  | { readonly kind: 'wal_level'; readonly walLevel: string }
  | { readonly kind: 'replication_right'; readonly role: string }
  | { readonly kind: 'no_free_slot'; readonly max: number; readonly used: number }
  | { readonly kind: 'no_free_wal_sender'; readonly max: number; readonly used: number }
  | { readonly kind: 'publication_missing'; readonly publication: string }
  | { readonly kind: 'publication_partial'; readonly publication: string; readonly missing: readonly string[] };

export interface OriginCheck {
  readonly facts: OriginFacts;
  /** Empty when replication can begin. Most fundamental first. */
  readonly findings: readonly OriginFinding[];
}

/** Oldest origin that is supported (server_version_num). */
export const oldestOrigin = 140000;

export interface CheckOptions {
  readonly publication?: string;
}

interface FactsRow {
  version_number: number;
  version: string;
  wal_level: string;
  role: string;
  may_replicate: boolean;
  superuser: boolean;
  bypass: boolean;
  max_slots: number;
  used_slots: number;
  max_senders: number;
  used_senders: number;
  sender_timeout: number;
  database: string;
  database_oid: string;
  encoding: string;
  in_recovery: boolean;
}

/** Rejects only when the connection fails. */
export async function checkOrigin(client: pg.Client, options: CheckOptions = {}): Promise<OriginCheck> {
  const result = await client.query<FactsRow>(
    `SELECT pg_catalog.current_setting('server_version_num')::int AS version_number,
            pg_catalog.current_setting('server_version') AS version,
            pg_catalog.current_setting('wal_level') AS wal_level,
            r.rolname::text AS role,
            r.rolsuper OR r.rolreplication OR COALESCE((SELECT pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER')
              FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_replication'), false) AS may_replicate,
            r.rolsuper AS superuser,
            r.rolsuper OR r.rolbypassrls AS bypass,
            pg_catalog.current_setting('max_replication_slots')::int AS max_slots,
            (SELECT count(*)::int FROM pg_catalog.pg_replication_slots) AS used_slots,
            pg_catalog.current_setting('max_wal_senders')::int AS max_senders,
            (SELECT count(*)::int FROM pg_catalog.pg_stat_replication) AS used_senders,
            (SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout') AS sender_timeout,
            d.datname::text AS database,
            d.oid::text AS database_oid,
            pg_catalog.pg_encoding_to_char(d.encoding)::text AS encoding,
            pg_catalog.pg_is_in_recovery() AS in_recovery
     FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
     WHERE r.rolname = current_user AND d.datname = pg_catalog.current_database()`,
  );
  const row = result.rows[0];
  if (row === undefined) throw new Error('the origin does not know the role that is connected');
  const system = await systemIdentity(client);
  const facts: OriginFacts = {
    versionNumber: row.version_number,
    version: row.version,
    walLevel: row.wal_level,
    role: row.role,
    mayReplicate: row.may_replicate,
    superuser: row.superuser,
    bypassesRowSecurity: row.bypass,
    maxReplicationSlots: row.max_slots,
    usedReplicationSlots: row.used_slots,
    maxWalSenders: row.max_senders,
    usedWalSenders: row.used_senders,
    walSenderTimeoutMs: row.sender_timeout,
    database: row.database,
    databaseOid: Number(row.database_oid),
    encoding: row.encoding,
    systemIdentifier: system?.identifier,
    timeline: system?.timeline,
    inRecovery: row.in_recovery,
    publication: options.publication === undefined ? undefined : await lookUpPublication(client, options.publication),
  };
  return { facts, findings: findingsOf(facts, options) };
}

function findingsOf(facts: OriginFacts, options: CheckOptions): OriginFinding[] {
  const findings: OriginFinding[] = [];
  if (facts.versionNumber < oldestOrigin) findings.push({ kind: 'version', version: facts.version });
  if (facts.walLevel !== 'logical') findings.push({ kind: 'wal_level', walLevel: facts.walLevel });
  if (!facts.mayReplicate) findings.push({ kind: 'replication_right', role: facts.role });
  if (facts.usedReplicationSlots >= facts.maxReplicationSlots) {
    findings.push({ kind: 'no_free_slot', max: facts.maxReplicationSlots, used: facts.usedReplicationSlots });
  }
  if (facts.usedWalSenders >= facts.maxWalSenders) {
    findings.push({ kind: 'no_free_wal_sender', max: facts.maxWalSenders, used: facts.usedWalSenders });
  }
  if (options.publication !== undefined) {
    const publication = facts.publication;
    if (publication === undefined) findings.push({ kind: 'publication_missing', publication: options.publication });
    else {
      const missing = (['insert', 'update', 'delete', 'truncate'] as const).filter((operation) => !publication[operation]);
      if (missing.length > 0) findings.push({ kind: 'publication_partial', publication: options.publication, missing });
    }
  }
  return findings;
}

async function systemIdentity(client: pg.Client): Promise<{ identifier: string; timeline: number } | undefined> {
  try {
    const result = await client.query<{ identifier: string; timeline: number }>(
      `SELECT s.system_identifier::text AS identifier, c.timeline_id AS timeline
       FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c`,
    );
    return result.rows[0];
  } catch (error) {
    // Some hosted servers keep it from ordinary roles.
    if (error instanceof Error && 'code' in error && error.code === '42501') return undefined;
    throw error;
  }
}

async function lookUpPublication(client: pg.Client, name: string): Promise<PublicationFacts | undefined> {
  const result = await client.query<PublicationFacts>(
    `SELECT pubname::text AS name, puballtables AS "allTables", pubinsert AS "insert", pubupdate AS "update",
            pubdelete AS "delete", pubtruncate AS "truncate", pubviaroot AS "viaRoot"
     FROM pg_catalog.pg_publication WHERE pubname = $1`,
    [name],
  );
  return result.rows[0];
}
