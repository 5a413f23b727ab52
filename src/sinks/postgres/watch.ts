/**
 * Why a session of a target does not answer, found out over another one.
 * Invariant: a session that works, or waits for somebody over there, is left alone, however long that takes: who blocks it is told, nothing is begun
 * anew. One that nobody over there works for any more is cut, and ended over there as well, where that can be, so that it blocks no successor.
 */
import type { ServerAddress } from '../../config.ts';
import { connectRaw } from '../../replication/raw-connection.ts';
import type { RawConnection } from '../../replication/session-contract.ts';
import { TargetError } from '../target.ts';

export const applicationName = 'millrace sink';

export interface WatchTimings {
  /** An answer that takes longer is asked after, */
  readonly lookAfterMs: number;
  /** and again as often. */
  readonly lookEveryMs: number;
  /** How long another session may take to say why. */
  readonly lookMs: number;
  /** A session that nothing is known of, or that idles over there, is cut after this long. */
  readonly lostAfterMs: number;
}

export const defaultTimings: WatchTimings = { lookAfterMs: 8000, lookEveryMs: 5000, lookMs: 5000, lostAfterMs: 30_000 };

export interface Watched {
  readonly session: RawConnection;
  /** Its process over there, which the other end of the connection need not be. */
  readonly pid: () => number;
}

export interface Watch {
  /** What is to be answered soon. Rejects with TargetError when the session was cut; else as the work does. */
  over<T>(watched: Watched, work: () => Promise<T>): Promise<T>;
  /** What the session was last seen to wait for, in the work that is under way or has just failed. */
  readonly last: TargetError | null;
  stop(): void;
}

export type Finding =
  | { readonly kind: 'works' }
  | { readonly kind: 'waits'; readonly what: string; readonly hint?: string }
  /** Nobody can say, or nobody works for it. */
  | { readonly kind: 'silent'; readonly what: string };

/** Finds out what the process `pid` of the server does. `end`: ends it, when it is one of ours that waits for us. Never throws. */
export type Look = (address: ServerAddress, pid: number, patienceMs: number, end: boolean) => Promise<Finding>;

/** `waits`: told what a session waits for; what it was told last is over with the next that is delivered. */
export function watchOf(
  address: ServerAddress,
  waits: (what: TargetError) => void,
  timings: WatchTimings = defaultTimings,
  look: Look = lookAt,
): Watch {
  let timer: NodeJS.Timeout | undefined;
  let last: TargetError | null = null;
  let isStopped = false;

  return {
    get last() {
      return last;
    },
    async over<T>(watched: Watched, work: () => Promise<T>): Promise<T> {
      let isOver = false;
      /** When it was last known to be worked for over there. */
      let heardOf = performance.now();
      last = null;
      const again = (ms: number): void => {
        if (!isOver && !isStopped) timer = setTimeout(() => void ask(), ms).unref();
      };
      const ask = async (): Promise<void> => {
        const finding = await look(address, watched.pid(), timings.lookMs, false);
        if (isOver || isStopped) return;
        if (finding.kind !== 'silent') heardOf = performance.now();
        if (finding.kind === 'works') {
          again(timings.lookEveryMs);
          return;
        }
        const { what } = finding;
        last = new TargetError('retriable', `the target does not answer: ${what}`, 'hint' in finding ? { hint: finding.hint } : {});
        waits(last);
        if (performance.now() - heardOf >= timings.lostAfterMs) {
          watched.session.destroy(last);
          void look(address, watched.pid(), timings.lookMs, true);
        } else again(timings.lookEveryMs);
      };
      again(timings.lookAfterMs);
      try {
        return await work();
      } finally {
        isOver = true;
        clearTimeout(timer);
      }
    },
    stop() {
      isStopped = true;
      clearTimeout(timer);
    },
  };
}

/** Who stands in the way comes as JSON. Where the role may not see what others do, there are their process ids. */
const lookSql = (pid: number): string => `
SELECT a.state, a.wait_event_type, a.wait_event,
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('pid', p.pid, 'role', b.usename, 'application', nullif(b.application_name, ''),
                 'state', b.state, 'query', pg_catalog.left(pg_catalog.regexp_replace(b.query, '\\s+', ' ', 'g'), 200)) ORDER BY p.place)
          FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(a.pid)) WITH ORDINALITY p(pid, place) LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid = p.pid)
  FROM pg_catalog.pg_stat_activity a WHERE a.pid = ${pid}`;

/** Only one of ours that waits for its client. */
const endSql = (pid: number): string => `
SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
 WHERE a.pid = ${pid} AND a.usename = current_user AND a.application_name = '${applicationName}' AND a.wait_event = 'ClientRead'`;

interface Blocker {
  readonly pid: number;
  readonly role: string | null;
  readonly application: string | null;
  readonly state: string | null;
  readonly query: string | null;
}

async function lookAt(address: ServerAddress, pid: number, patienceMs: number, end: boolean): Promise<Finding> {
  let other: RawConnection | null = null;
  const patience = setTimeout(() => other?.destroy(new Error(`no answer within ${patienceMs / 1000} s`)), patienceMs);
  try {
    other = await connectRaw(address, { applicationName: 'millrace sink watch', connectTimeoutMs: patienceMs });
    if (end) await other.query(endSql(pid));
    const [answer] = await other.query(lookSql(pid));
    return finding(pid, answer?.rows[0]);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { kind: 'silent', what: `nor can be asked over another session why (${why})` };
  } finally {
    clearTimeout(patience);
    other?.destroy();
  }
}

function finding(pid: number, row: readonly (string | null)[] | undefined): Finding {
  if (row === undefined) return { kind: 'silent', what: `the session of the sink (process ${pid}) is not there any more` };
  const [, type, event, blocking] = row;
  const blockers = blocking === null || blocking === undefined ? [] : (JSON.parse(blocking) as readonly Blocker[]);
  const [first] = blockers;
  if (first !== undefined) {
    const holders = blockers.map(shown).join(', and ');
    const hint =
      first.pid === 0
        ? 'SELECT * FROM pg_prepared_xacts; at the target, and COMMIT PREPARED or ROLLBACK PREPARED.'
        : `That transaction has to end. To end it, type at the target: SELECT pg_terminate_backend(${first.pid});`;
    return { kind: 'waits', what: `process ${pid} waits for a lock of ${holders}`, hint };
  }
  if (event === 'SyncRep')
    return { kind: 'waits', what: `process ${pid} waits for a synchronous standby of the target to confirm a commit` };
  if (type === 'Lock') return { kind: 'waits', what: `process ${pid} waits for a lock (${event})` };
  if (event === 'ClientRead') return { kind: 'silent', what: `process ${pid} waits for the sink: what was sent has not arrived` };
  return { kind: 'works' };
}

function shown({ pid, role, application, state, query }: Blocker): string {
  if (pid === 0) return 'a prepared transaction';
  const about = [application, role === null ? null : `role ${role}`, state].filter((part) => part !== null);
  const of = about.length === 0 ? '' : ` (${about.join(', ')})`;
  return `process ${pid}${of}${query === null || query === '' || query.startsWith('<') ? '' : `: ${query}`}`;
}
