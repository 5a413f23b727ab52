/**
 * Migrations in the catalog: what is read and written there. Invariant: a phase changes in the transaction that makes it true.
 */
import type { Client } from 'pg';
import type { RawConnection } from '../replication/session-contract.ts';
import type { MigrationOptions, MigrationPhase, MigrationProblem, MigrationRequest } from './model.ts';
import { slotPrefix } from './places.ts';
import type { Key } from './touched.ts';

/** Those that the engine has to do something about, as a jsonb array of Migration. When one has ended its slot goes after the commit, or after a restart. */
export const migrationsSql = `(SELECT coalesce(jsonb_agg(jsonb_build_object(
                 'id', m.id, 'name', m.name, 'owner', jsonb_build_object('oid', m.owner::bigint, 'name', pg_get_userbyid(m.owner)), 'source', m.source,
                 'targetOid', m.target_oid::bigint, 'definition', m.definition, 'options', m.options, 'phase', m.phase, 'paused', m.paused, 'request', m.request) ORDER BY m.id), '[]')
                 FROM millrace.migration m
                WHERE m.phase NOT IN ('finished', 'cancelled')
                   OR m.id IN (SELECT substring(s.slot_name FROM '[0-9]+$')::bigint FROM pg_replication_slots s
                                WHERE s.slot_name ~ '^${slotPrefix}_[0-9]+_[0-9]+$' AND s.database = current_database()))`;

export interface Progress {
  readonly phase: MigrationPhase;
  readonly request: MigrationRequest | null;
  readonly copiedTo: Key | null;
  readonly verifiedTo: Key | null;
  readonly found: number;
  readonly windowEndsAt: number | null;
}

export async function readProgress(client: Client, id: number): Promise<Progress> {
  await client.query('INSERT INTO millrace.migration_progress (migration_id) VALUES ($1) ON CONFLICT DO NOTHING', [id]);
  const { rows } = await client.query<{
    copied_to: string[] | null;
    verified_to: string[] | null;
    found: string;
    ends: number | null;
    phase: MigrationPhase;
    request: MigrationRequest | null;
  }>(
    `SELECT m.phase, m.request, p.copied_to, p.verified_to, p.found, (extract(epoch FROM m.window_ends_at) * 1000)::float8 AS ends
       FROM millrace.migration_progress p JOIN millrace.migration m ON m.id = p.migration_id WHERE p.migration_id = $1`,
    [id],
  );
  const [row] = rows;
  return {
    phase: row?.phase ?? 'cancelled',
    request: row?.request ?? null,
    copiedTo: row?.copied_to ?? null,
    verifiedTo: row?.verified_to ?? null,
    found: Number(row?.found ?? 0),
    windowEndsAt: row?.ends ?? null,
  };
}

/** Within or outside of a transaction of the session. `set`: SQL assignments; values are numbers, or nothing but what `literal` has made. */
export async function noteProgress(session: RawConnection, id: number, set: string): Promise<void> {
  await session.query(`UPDATE millrace.migration_progress SET ${set} WHERE migration_id = ${id}`);
}

export async function noteProblem(client: Client, id: number, problem: MigrationProblem | null): Promise<void> {
  await client.query('UPDATE millrace.migration_progress SET error = $2 WHERE migration_id = $1 AND error IS DISTINCT FROM $2::jsonb', [
    id,
    problem === null ? null : JSON.stringify(problem),
  ]);
}

/** Statement that enters a phase; the catalog is read again by whoever waits. */
export function phaseSql(id: number, phase: MigrationPhase, set: readonly string[] = []): string {
  return `UPDATE millrace.migration SET ${[`phase = '${phase}'`, 'phase_since = clock_timestamp()', ...set].join(', ')} WHERE id = ${id}`;
}

export const requestDone = (id: number, request: string): string =>
  `UPDATE millrace.migration SET request = NULL WHERE id = ${id} AND request = '${request}'`;

/** Milliseconds after which the cutover's window ends, as SQL; NULL: never. */
export const windowSql = ({ reverseWindowMs }: MigrationOptions): string =>
  reverseWindowMs === null ? 'NULL' : `clock_timestamp() + ${reverseWindowMs} * interval '1 millisecond'`;

/** An assignment of phaseSql: the request that led to it is done. */
export const requestEnds = (request: string): string => `request = nullif(request, '${request}')`;

/**
 * The attempt that succeeds says how long it has held its locks, which it had at `since`, and how many keys it has looked at. `set`: assignments
 * beside that.
 */
export const heldSql = (id: number, since: string, keys: number, set: readonly string[]): string =>
  `UPDATE millrace.migration_progress SET ${[...set, 'attempts = attempts + 1'].join(', ')}, applied_keys = applied_keys + ${keys}, blocked_by = NULL, next_try_at = NULL, error = NULL,
          hold_ms = 1000 * extract(epoch FROM pg_catalog.clock_timestamp() - '${since}'::timestamptz) WHERE migration_id = ${id}`;
