/** Who is in the way of a migration that waits for a lock. Invariant: whether anybody is found or not changes nothing but what is told. */
import type { MigrationSessions } from './sessions.ts';

export interface Blocker {
  readonly pid: number | null;
  readonly query: string;
  readonly ageMs: number;
  readonly user: string;
}

export interface BlockerWatch {
  end(): void;
  found(): Promise<readonly Blocker[]>;
}

/** Nothing is waited for. */
export const noWatch: BlockerWatch = { end: () => undefined, found: async () => [] };

/** Looks who is in the way while the lock is waited for: afterwards nobody is. */
export function watchBlockers({ work, beside }: MigrationSessions, afterMs: number): BlockerWatch {
  let found: Promise<readonly Blocker[]> = Promise.resolve([]);
  const timer = setTimeout(() => {
    found = beside
      .query<Blocker>(
        `SELECT a.pid, left(a.query, 200) AS query, coalesce(round(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000), 0)::float8 AS "ageMs", a.usename AS user
           FROM unnest(pg_catalog.pg_blocking_pids($1)) AS b(pid) JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
          UNION ALL
         SELECT NULL, 'PREPARE TRANSACTION ' || quote_literal(p.gid), coalesce(round(extract(epoch FROM clock_timestamp() - p.prepared) * 1000), 0)::float8, p.owner
           FROM unnest(pg_catalog.pg_blocking_pids($1)) AS b(pid), pg_catalog.pg_prepared_xacts p WHERE b.pid = 0 AND p.database = current_database()`,
        [work.backendPid],
      )
      .then(({ rows }) => rows)
      .catch(() => []);
  }, afterMs);
  return { end: () => clearTimeout(timer), found: () => found };
}
