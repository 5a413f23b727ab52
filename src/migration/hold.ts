/**
 * Statements of Millrace's clients that wait while the locks of a migration are sought and held.
 * Invariant: it spares waiting and failures and nothing hangs on it: whoever is not held, or not long enough, meets the locks.
 */
import type { RawConnection } from '../replication/session-contract.ts';
import { arrayText } from './change-feed.ts';

/**
 * From now on new requests that may touch relations of these names wait, `ms` at most, until the answer is called. `unknown`: those that do not say
 * what they touch, too. `changed`: the names stand for something else now.
 */
export type HoldStatements = (names: readonly string[], unknown: boolean, ms: number) => Promise<(changed: boolean) => void>;

/** Tries that last longer concern only who names the tables. */
const longestUnknownMs = 10;

/** The relations, what stands at the other end of their foreign keys, partitions, and all views that read any of these. `$1`: quoted names. */
const namesSql = `WITH RECURSIVE locked AS (SELECT to_regclass(n)::oid AS oid FROM unnest($1::text[]) n),
       touched AS (SELECT oid FROM locked
                    UNION SELECT CASE WHEN k.conrelid = l.oid THEN k.confrelid ELSE k.conrelid END FROM locked l JOIN pg_catalog.pg_constraint k ON k.contype = 'f' AND l.oid IN (k.conrelid, k.confrelid)),
       reached AS (SELECT oid FROM touched
                    UNION SELECT other.oid FROM reached, LATERAL (SELECT r.ev_class AS oid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
                                                                   WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = reached.oid
                                                                   UNION ALL SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = reached.oid) other)
SELECT DISTINCT c.relname FROM reached JOIN pg_catalog.pg_class c ON c.oid = reached.oid AND c.relnamespace <> to_regnamespace('millrace_data')`;

/** With the locks, the longest that a request waits; what takes longer has it wait at the locks. */
const mostLockedMs = 1_000;

export interface Holding {
  /** These relations (quoted) are to be locked. */
  prepare(relations: readonly string[]): Promise<void>;
  /** Before a try for the locks that lasts `tryMs`. */
  begin(tryMs: number): Promise<void>;
  /** `changed`: the names have changed hands. Does nothing when nothing is held. */
  end(changed: boolean): void;
}

export function holding(hold: HoldStatements | null, work: RawConnection): Holding {
  if (hold === null) return { prepare: async () => undefined, begin: async () => undefined, end: () => undefined };
  let names: readonly string[] = [];
  let release: ((changed: boolean) => void) | null = null;
  const end = (changed: boolean): void => {
    release?.(changed);
    release = null;
  };
  return {
    end,
    prepare: async (relations) => {
      const { rows } = await work.execute('held', namesSql, [arrayText(relations)]);
      names = rows.map(([name]) => name ?? '');
    },
    begin: async (tryMs) => {
      end(false);
      release = await hold(names, tryMs <= longestUnknownMs, tryMs + mostLockedMs);
    },
  };
}
