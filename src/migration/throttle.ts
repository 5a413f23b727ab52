/** When copying rests. Invariant: applying what was touched never rests: WAL would pile up. */
import type { Client } from 'pg';
import type { ChangeFeed } from './change-feed.ts';

export interface Load {
  /** Client backends at work besides ours. */
  readonly active: number;
  /** Furthest a standby is behind in replaying, in ms. */
  readonly standbyLagMs: number;
}

export async function readLoad(client: Client): Promise<Load> {
  const { rows } = await client.query<Load>(
    `SELECT (SELECT count(*)::integer FROM pg_catalog.pg_stat_activity
              WHERE state = 'active' AND backend_type = 'client backend' AND application_name !~ '^millrace') AS active,
            coalesce((SELECT max(extract(epoch FROM replay_lag)) * 1000 FROM pg_catalog.pg_stat_replication WHERE application_name !~ '^millrace'), 0)::float8 AS "standbyLagMs"`,
  );
  return rows[0] ?? { active: 0, standbyLagMs: 0 };
}

/** Why copying rests; null: it need not. */
export function whyRest(feed: ChangeFeed, load: Load, maxLagMs: number, now: number): string | null {
  const { oldest } = feed.touched;
  const lagMs = oldest === undefined ? 0 : now - oldest.committedAt;
  if (lagMs > maxLagMs) return `changes are applied ${Math.round(lagMs)} ms late`;
  if (load.standbyLagMs > maxLagMs) return `a standby is ${Math.round(load.standbyLagMs)} ms behind`;
  return null;
}

/** For how long to rest after a piece that took so long: as long again while others work, so that they get at least half of what there is. */
export const restMs = (tookMs: number, load: Load): number => (load.active === 0 ? 0 : Math.min(tookMs, 1000));

/** Rows of the next piece: a piece takes about so long, and is never longer than what was asked for in bytes. */
export function nextRows(rows: number, tookMs: number, most: number): number {
  const wished = tookMs < 50 ? rows * 2 : tookMs > 250 ? rows / 2 : rows;
  return Math.max(100, Math.min(Math.round(wished), most));
}
