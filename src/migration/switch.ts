/**
 * Cutover and revert: the other table becomes the truth.
 * Invariant: it happens in one transaction that holds ACCESS EXCLUSIVE locks on everything involved, after the follower has been brought to the very
 * state in which the locks found the truth. Whatever takes longer than it may is rolled back, and nobody sees anything of it.
 */
import { PostgresError } from '../replication/postgres-error.ts';
import { heldSql, phaseSql, requestDone, windowSql } from './catalog.ts';
import { arrayText } from './change-feed.ts';
import { compareEmptied, filesSql } from './emptied.ts';
import {
  cancelSql,
  cutoverSql,
  dependentsSql,
  finalizeSql,
  lockedAtEnd,
  lockSql,
  otherEndsSql,
  revertSql,
  toBeLocked,
} from './flip-sql.ts';
import { applyWaiting, type Following, keysOf } from './follow.ts';
import { definitionOf, keepUp } from './keep-up.ts';
import type { Migration, MigrationProblem } from './model.ts';
import { downView, qualified, truthPlace, upView } from './places.ts';
import { triedAgain } from './problems.ts';
import { applyKeys, catchUp, type MigrationSessions, rollback } from './sessions.ts';
import { aheadSql, aheadViews, lastingViewNames, layoutViews } from './shape-views.ts';

export interface Blocker {
  readonly pid: number | null;
  readonly query: string;
  readonly ageMs: number;
  readonly user: string;
}

export type SwitchOutcome =
  | { readonly done: true; readonly heldMs: number }
  | { readonly done: false; readonly problem: MigrationProblem; readonly blockers: readonly Blocker[] };

/** The attempt is over. It begins anew after a pause. */
const later = (message: string, blockers: readonly Blocker[] = []): SwitchOutcome => ({
  done: false,
  problem: { message, hint: triedAgain },
  blockers,
});

const notHad = 'the locks were not to be had';

/** Waited too long for a lock, or for a statement, or for each other. */
const lockCodes: readonly string[] = ['55P03', '57014', '40P01'];

/** One attempt. Throws what is not a matter of waiting: a dependent view that does not fit, say. */
export async function switchTruth(f: Following): Promise<SwitchOutcome> {
  const { migration, sessions, feed, sync } = f;
  const { lockTimeoutMs, maxHoldMs } = migration.options;
  const seen = await definitionOf(sessions, migration, f.truth);
  const cannot = await keepUp(sessions, migration, f.truth);
  if (cannot !== null) return { done: false, problem: cannot, blockers: [] };
  await compareEmptied(f);
  const early = await gate(f);
  if (early !== null) return early;
  const forward = f.truth === 'source';
  const involved = toBeLocked(migration, f.truth).map(qualified);
  let blockers: readonly Blocker[] = [];
  let locked = 0;
  try {
    // Whatever can be made before is: it takes longer than the rest, and locks nothing that anyone waits for.
    await sessions.work.query(['BEGIN', ...aheadSql(migration, forward ? 'target' : 'source')].join(';\n'));
    const dependents = await dependentsOf(sessions, migration, involved);
    const ends = await otherEnds(f);
    const lock = await lockAll(sessions, [...dependents.map(({ name }) => name), ...involved, ...ends], lockTimeoutMs);
    if (!lock.had) {
      blockers = lock.blockers;
      throw new DeadlineError();
    }
    const { since } = lock;
    locked = performance.now();
    await sessions.work.query(`SET LOCAL statement_timeout = ${maxHoldMs}`);
    const left = (): number => maxHoldMs - (performance.now() - locked);
    await within(catchUp(sessions.beside, feed), left());
    const taken = feed.touched.all();
    if (taken.some(({ keys }) => keys === null)) {
      await rollback(sessions.work);
      return later('every row has to be compared first: of a TRUNCATE, or a very large transaction');
    }
    const keys = keysOf(taken);
    if (keys.length > 0) await applyKeys(sessions.work, migration.source.owner.name, sync, sync.applyAnew, keys);
    if (left() <= 0) throw new DeadlineError();
    if ((await definitionOf(sessions, migration, f.truth)) !== seen) {
      await rollback(sessions.work);
      return later('the definition of the table was changed while the locks were waited for');
    }
    await changeNames(
      sessions,
      dependents,
      forward ? cutoverSql(migration) : revertSql(migration),
      forward
        ? [
            phaseSql(migration.id, 'cut_over', [
              'cut_over_at = clock_timestamp()',
              'cut_over_lsn = pg_catalog.pg_current_wal_insert_lsn()',
              `window_ends_at = ${windowSql(migration.options)}`,
            ]),
            requestDone(migration.id, 'cutover'),
            heldSql(migration.id, since, keys.length),
            filesSql(migration, 'target'),
          ]
        : [
            phaseSql(migration.id, 'verifying', [
              'reverted_at = clock_timestamp()',
              'window_ends_at = NULL',
              `options = jsonb_set(options, '{cutover}', '"manual"')`,
            ]),
            requestDone(migration.id, 'revert'),
            heldSql(migration.id, since, keys.length),
            filesSql(migration, 'source'),
          ],
    );
    feed.taken(taken);
    return { done: true, heldMs: performance.now() - locked };
  } catch (error) {
    await rollback(sessions.work);
    const late = error instanceof DeadlineError || (error instanceof PostgresError && lockCodes.includes(error.code));
    if (!late) throw error;
    return later(locked === 0 ? notHad : `it would have held its locks for more than ${maxHoldMs} ms`, blockers);
  } finally {
    sessions.holding.end(false);
  }
}

/** What ends a migration: the names change for good. Waits for locks as a cutover does. */
export async function endMigration(sessions: MigrationSessions, migration: Migration, how: 'finalize' | 'cancel'): Promise<SwitchOutcome> {
  const { lockTimeoutMs } = migration.options;
  const truth = how === 'finalize' ? 'target' : 'source';
  try {
    await sessions.work.query('BEGIN');
    const views = [...layoutViews(migration, truth), ...lastingViewNames(migration)].map(qualified);
    const dependents = await dependentsOf(sessions, migration, views);
    const lock = await lockAll(
      sessions,
      [...dependents.map(({ name }) => name), ...lockedAtEnd(migration, truth).map(qualified)],
      lockTimeoutMs,
    );
    if (!lock.had) {
      await rollback(sessions.work);
      return later(notHad, lock.blockers);
    }
    const locked = performance.now();
    await changeNames(sessions, dependents, how === 'finalize' ? finalizeSql(migration) : cancelSql(migration), [
      phaseSql(migration.id, how === 'finalize' ? 'finished' : 'cancelled', ['ended_at = clock_timestamp()', 'request = NULL']),
    ]);
    return { done: true, heldMs: performance.now() - locked };
  } catch (error) {
    await rollback(sessions.work);
    throw error;
  } finally {
    sessions.holding.end(false);
  }
}

type Lock = { readonly had: true; readonly since: string } | { readonly had: false; readonly blockers: readonly Blocker[] };

/** How long each try waits, in ms; none waits longer than the user said. */
const tries = [5, 10, 10, 20, 20, 40, 40, 100, 100, 1000];

/**
 * Gets all locks, or none. Statements lock a view and then what it reads, transactions one relation and then another: whatever order we take, somebody
 * may hold the one that we want while he wants one that we hold. So tries are short, in another order each time, and after each everybody goes on.
 */
async function lockAll(sessions: MigrationSessions, tables: readonly string[], lockTimeoutMs: number): Promise<Lock> {
  const { work } = sessions;
  let blockers: readonly Blocker[] = [];
  await sessions.holding.prepare(tables);
  await work.query('SAVEPOINT locks');
  for (const [i, ms] of tries.entries()) {
    const waitMs = Math.min(ms, lockTimeoutMs);
    const order = i % 2 === 0 ? tables : [...tables].reverse();
    await sessions.holding.begin(waitMs);
    const watch = watchBlockers(sessions, waitMs * 0.6);
    try {
      // One limit for all of them together.
      await work.query(`SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = ${waitMs}`);
      const [, , since] = await work.query(`${lockSql(order)}; SET LOCAL statement_timeout = 0; SELECT pg_catalog.clock_timestamp()`);
      return { had: true, since: since?.rows[0]?.[0] ?? '' };
    } catch (error) {
      if (!(error instanceof PostgresError) || !lockCodes.includes(error.code)) throw error;
      watch.end();
      const found = await watch.found();
      if (found.length > 0) blockers = found;
      await work.query('ROLLBACK TO locks');
      sessions.holding.end(false);
      await new Promise((resolve) => setTimeout(resolve, 5 + Math.random() * 20));
    } finally {
      watch.end();
    }
  }
  return { had: false, blockers };
}

/** Of another table that takes the place: tables at the other ends of foreign keys lose a constraint, and get one. */
async function otherEnds({ sessions, migration, truth }: Following): Promise<readonly string[]> {
  if (migration.definition.kind === 'move') return [];
  const { rows } = await sessions.work.execute('ends', otherEndsSql, [qualified(truthPlace(migration, truth))]);
  return rows.map(([name]) => name ?? '');
}

/** Keys that are quickly looked at. */
const fewKeys = 1_000;
/** What the stream brings is applied as it comes, while a marker is waited for. */
const applyEveryMs = 100;

/** Nothing is locked before what waits is little, and the stream quick to tell. Null: go on. */
async function gate(f: Following): Promise<SwitchOutcome | null> {
  for (let round = 0; round < 20; round++) {
    const began = performance.now();
    const passed = catchUp(f.sessions.beside, f.feed);
    passed.catch(() => undefined);
    while (!(await isOverIn(passed, applyEveryMs))) await applyWaiting(f);
    const took = performance.now() - began;
    await applyWaiting(f);
    if (took < f.migration.options.maxHoldMs / 2 && f.feed.touched.count < 1000 && f.feed.touched.keys < fewKeys) return null;
  }
  return later('changes come faster than they can be applied');
}

async function isOverIn(work: Promise<void>, ms: number): Promise<boolean> {
  try {
    await within(work, ms);
    return true;
  } catch (error) {
    if (error instanceof DeadlineError) return false;
    throw error;
  }
}

/** A view of the user: how to make it again with the names of then, and how to keep it out of the way until then. */
interface Dependent {
  readonly name: string;
  readonly create: string;
  readonly detach: string;
}

async function dependentsOf(
  { work }: MigrationSessions,
  migration: Migration,
  relations: readonly string[],
): Promise<readonly Dependent[]> {
  const { id } = migration;
  const ours = [
    ...(['source', 'target'] as const).flatMap((truth) => layoutViews(migration, truth).map(qualified)),
    ...[...lastingViewNames(migration), ...aheadViews(migration)].map(qualified),
    upView(id),
    downView(id),
  ];
  const { rows } = await work.execute('dependents', dependentsSql, [arrayText(relations), arrayText(ours)]);
  return rows.map(([create, detach, name]) => ({ name: name ?? '', create: create?.replace(/;\s*$/, '') ?? '', detach: detach ?? '' }));
}

/** The names change, views of the user that read what has moved are taken along, the phase is written, and all of it commits. */
async function changeNames(
  { work, holding }: MigrationSessions,
  dependents: readonly Dependent[],
  statements: readonly string[],
  after: readonly string[],
): Promise<void> {
  await work.query(
    [
      ...dependents.map(({ detach }) => detach),
      ...statements,
      ...dependents.map(({ create }) => create),
      ...after,
      "SELECT pg_catalog.pg_notify('millrace', '')",
      'COMMIT',
    ].join(';\n'),
  );
  holding.end(true);
}

class DeadlineError extends Error {}

async function within<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new DeadlineError()), Math.max(ms, 0));
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

interface BlockerWatch {
  end(): void;
  found(): Promise<readonly Blocker[]>;
}

/** Looks who is in the way while the lock is waited for: afterwards nobody is. */
function watchBlockers({ work, beside }: MigrationSessions, afterMs: number): BlockerWatch {
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
