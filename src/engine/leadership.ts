/**
 * Which of the engines of a database leads, and how it is noticed that the one that does is gone without a word.
 * Invariant: the advisory lock is held by the very session that runs the epochs, so losing the one is losing the other; whoever takes over raises the
 * token that each epoch checks. A leader that has been given up has no session left to commit with.
 *
 * The lock of a leader that was killed is free at once. One that hangs, or that the network has cut off, still holds it: so every engine asks something
 * of the upstream twice a second in a session of its own ("millrace heartbeat <pid of the epochs' session>"), and when that session has been silent
 * for `silenceMs`, or is not there, those who wait end the leader's sessions. An engine for its part ends when it gets no answer.
 */
import type { Client } from 'pg';
import type { ServerAddress } from '../config.ts';
import type { Logger } from '../log.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { connectPg } from '../replication/server-address.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { reach } from './fault-points.ts';

const lookEveryMs = 250;
const beatEveryMs = 500;
/** Silence of a leader after which another takes over: with the looks before and the start after it that makes three to five seconds. */
export const silenceMs = 2500;
/** An engine that has had no answer for so long ends, and its supervisor starts it again. */
export const answerMs = 10_000;

/** Two-part advisory lock ("mill" in ASCII, then 2). */
const lock = { classid: 1835625580, objid: 2 };
const lockSql = `SELECT pg_try_advisory_lock(${lock.classid}, ${lock.objid})`;

/** Who holds the lock, and for how many ms its other session has said nothing: null when there is none. */
const holderSql = `SELECT l.pid,
       (SELECT min(CASE WHEN a.state = 'idle' THEN floor(extract(epoch FROM clock_timestamp() - a.state_change) * 1000) ELSE 0 END)
          FROM pg_stat_activity a WHERE a.application_name = 'millrace heartbeat ' || l.pid AND a.usesysid = h.usesysid)
  FROM pg_locks l JOIN pg_stat_activity h ON h.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.classid = ${lock.classid} AND l.objid = ${lock.objid} AND l.objsubid = 2
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`;

/**
 * Sessions that only a leader has, of this database, and those of engines whose epochs' session is gone: what they have still to say is of no interest
 * any more, and may be wrong.
 */
const leftBehindSql = `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
 WHERE a.datname = current_database() AND a.usename = current_user
   AND (a.application_name IN ('millrace copy', 'millrace populate')
        OR a.application_name ~ '^millrace engine \\d+$'
           AND NOT EXISTS (SELECT FROM pg_stat_activity e WHERE e.application_name = 'millrace epochs' AND 'millrace engine ' || e.pid = a.application_name))`;

/** What is known of the leader from looking at it again and again. Pure. */
export class LeaderWatch {
  #pid: string | null = null;
  #alone = 0;

  /** `silentMs` null: it has no session that says that it lives. True: it is to be given up. */
  isGone(pid: string, silentMs: number | null, now: number): boolean {
    if (silentMs !== null) {
      this.#pid = null;
      return silentMs > silenceMs;
    }
    if (this.#pid !== pid) {
      this.#pid = pid;
      this.#alone = now;
    }
    return now - this.#alone > silenceMs;
  }
}

/**
 * Waits until `session` leads; answers its token, or null when `pause` says that it is to end. `pause` waits so many ms, less when something happens.
 */
export async function becomeLeader(
  session: RawConnection,
  log: Logger,
  pause: (ms: number) => Promise<'go on' | 'end'>,
): Promise<bigint | null> {
  const watch = new LeaderWatch();
  for (;;) {
    const [locked] = await session.query(lockSql);
    if (locked?.rows[0]?.[0] === 't') break;
    const [holders] = await session.query(holderSql);
    const [pid, silent] = holders?.rows[0] ?? [];
    if (typeof pid === 'string' && watch.isGone(pid, silent === null || silent === undefined ? null : Number(silent), performance.now())) {
      log.warn({ pid: Number(pid), silentMs: silent === null ? null : Number(silent) }, 'the leader says nothing: its session is ended');
      // Only while it is the one that holds the lock.
      await session
        .query(`SELECT pg_terminate_backend(h.pid) FROM (${holderSql}) h WHERE h.pid = ${Number(pid)}`)
        .catch((error: unknown) => {
          // One of another role, that we may not end: it has to be waited for.
          if (!(error instanceof PostgresError) || error.code !== '42501') throw error;
        });
    }
    if ((await pause(lookEveryMs)) === 'end') return null;
  }
  reach('leader.locked');
  const [token] = await session.query('UPDATE millrace.epoch SET token = token + 1 RETURNING token');
  await session.query(leftBehindSql);
  reach('leader.token-raised');
  return BigInt(token?.rows[0]?.[0] ?? '0');
}

export interface Heartbeat {
  stop(): Promise<void>;
}

/** Says regularly that the engine whose epochs run in session `backendPid` lives. `failed`: the upstream has not answered, or the session has ended. */
export async function startHeartbeat(
  upstream: ServerAddress,
  database: string,
  backendPid: number,
  failed: (error: Error) => void,
): Promise<Heartbeat> {
  const client: Client = await connectPg(upstream, { database, applicationName: `millrace heartbeat ${backendPid}` });
  client.on('error', failed);
  // Beats since the question that is open. Not time: a process that was stopped for a while has not been listening.
  let open: number | null = null;
  const beat = (): void => {
    if (open !== null) {
      if (++open * beatEveryMs > answerMs) failed(new Error(`the upstream has not answered for ${answerMs / 1000} s`));
      return;
    }
    open = 0;
    client.query('SELECT 1').then(() => {
      open = null;
    }, failed);
  };
  const timer = setInterval(beat, beatEveryMs);
  return {
    stop: async () => {
      clearInterval(timer);
      await client.end().catch(() => undefined);
    },
  };
}
