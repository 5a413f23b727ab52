/**
 * Cutover and revert: the other table becomes the truth.
 * Invariant: it happens in one transaction that holds ACCESS EXCLUSIVE locks on everything involved, after the follower has been brought to the very
 * state in which the locks found the truth. Whatever takes longer than it may is rolled back, and nobody sees anything of it.
 */
import { type Blocker, noWatch, watchBlockers } from './blockers.ts';
import { heldSql, phaseSql, requestEnds, windowSql } from './catalog.ts';
import { arrayText } from './change-feed.ts';
import { compareEmptied, filesSet } from './emptied.ts';
import {
  awaitedSet,
  cancelSql,
  cutoverSql,
  dependentsSql,
  finalizeSql,
  lockedAtEnd,
  otherEndsSql,
  revertSql,
  toBeLocked,
} from './flip-sql.ts';
import { applyEarly, applyWaiting, type Following, keysOf } from './follow.ts';
import { definitionOf, keepUp } from './keep-up.ts';
import { heldLockMs, isLockTimeout, isTimeout, lockAll } from './lock-all.ts';
import type { Migration, MigrationProblem } from './model.ts';
import { downView, qualified, truthPlace, upView } from './places.ts';
import { triedAgain } from './problems.ts';
import { applyKeys, begin, catchUp, type MigrationSessions, markerWithin, rollback } from './sessions.ts';
import { aheadSql, aheadViews, lastingViewNames, layoutViews } from './shape-views.ts';
import { answered, questionsSql, type Step } from './steps.ts';
import type { TouchingTransaction } from './touched.ts';

export type SwitchOutcome =
  /** `keys`: how many were written while the locks were waited for. */
  | { readonly done: true; readonly heldMs: number; readonly keys: number }
  | { readonly done: false; readonly problem: MigrationProblem; readonly blockers: readonly Blocker[] };

/** The attempt is over. It begins anew after a pause. */
const later = (message: string, blockers: readonly Blocker[] = []): SwitchOutcome => ({
  done: false,
  problem: { message, hint: triedAgain },
  blockers,
});

/** By itself, and not the table that it belongs to. */
const partsLocked = 'something that goes along with the table was locked';

const notHad = 'the locks were not to be had';

/** One attempt. Throws what is not a matter of waiting: a dependent view that does not fit, say. */
export async function switchTruth(f: Following): Promise<SwitchOutcome> {
  const { migration, sessions, feed, sync } = f;
  const { maxHoldMs } = migration.options;
  const seen = await definitionOf(sessions, migration, f.truth);
  const cannot = await keepUp(sessions, migration, f.truth);
  if (cannot !== null) return { done: false, problem: cannot, blockers: [] };
  await compareEmptied(f);
  const shut = await gate(f);
  if (shut !== null) return shut;
  const forward = f.truth === 'source';
  const involved = toBeLocked(migration, f.truth).map(qualified);
  let blockers: readonly Blocker[] = [];
  let locked = 0;
  let watch = noWatch;
  const marker = markerWithin(sessions, feed);
  try {
    await planAhead(f);
    // Whatever can be made before is: it takes longer than the rest, and locks nothing that anyone waits for.
    await sessions.work.query(['BEGIN', plansLast, ...aheadSql(migration, forward ? 'target' : 'source')].join(';\n'));
    const dependents = await dependentsOf(sessions, migration, involved);
    const ends = await otherEnds(f);
    const steps = forward ? cutoverSql(migration) : revertSql(migration);
    // So that they are planned, and what they read is in memory.
    await Promise.all([answer(sessions, forward ? 'cutover' : 'revert', steps), definitionOf(sessions, migration, f.truth)]);
    const early = new Set<TouchingTransaction>();
    const lock = await lockAll(sessions, [...dependents.map(({ name }) => name), ...involved, ...ends], migration.options, {
      statementMs: maxHoldMs,
      before: () => applyEarly(f, early),
      along: marker.sql,
    });
    if (!lock.had) {
      blockers = lock.blockers;
      throw new DeadlineError();
    }
    const { since } = lock;
    locked = performance.now();
    const left = (): number => maxHoldMs - (performance.now() - locked);
    // While the stream comes to the end, the catalog is looked at: nobody changes now what these read.
    const found = Promise.all([definitionOf(sessions, migration, f.truth), answer(sessions, forward ? 'cutover' : 'revert', steps)]);
    found.catch(() => undefined);
    await within(marker.passed(), left());
    const taken = feed.touched.all();
    if (taken.some(({ keys }) => keys === null)) {
      await rollback(sessions.work);
      return later('every row has to be compared first: of a TRUNCATE, or a very large transaction');
    }
    const keys = keysOf(taken.filter((transaction) => !early.has(transaction)));
    const [definition, statements] = await found;
    if (left() <= 0) throw new DeadlineError();
    if (definition !== seen) {
      await rollback(sessions.work);
      return later('the definition of the table was changed while the locks were waited for');
    }
    watch = watchBlockers(sessions, heldLockMs / 2);
    // Sent together: where the keys fail the names fail, too, and nothing commits.
    const applied = keys.length > 0 ? applyKeys(sessions.work, migration.source.owner.name, sync, sync.applyAnew, keys) : null;
    applied?.catch(() => undefined);
    const renamed = changeNames(
      sessions,
      dependents,
      statements,
      forward
        ? [
            phaseSql(migration.id, 'cut_over', [
              'cut_over_at = clock_timestamp()',
              'cut_over_lsn = pg_catalog.pg_current_wal_insert_lsn()',
              `window_ends_at = ${windowSql(migration.options)}`,
              requestEnds('cutover'),
            ]),
            heldSql(migration.id, since, keys.length, [...awaitedSet(migration), filesSet(migration, 'target')]),
          ]
        : [
            phaseSql(migration.id, 'verifying', [
              'reverted_at = clock_timestamp()',
              'window_ends_at = NULL',
              `options = jsonb_set(options, '{cutover}', '"manual"')`,
              requestEnds('revert'),
            ]),
            heldSql(migration.id, since, keys.length, [filesSet(migration, 'source')]),
          ],
    );
    renamed.catch(() => undefined);
    const limit = cancelLate(sessions, left());
    // One after the other: where the keys have failed, the names say only that something has.
    const changed = await Promise.resolve(applied)
      .then(() => {
        // Who waited meets the locks for the few milliseconds that are left: word to him takes as long, and longer when those at the locks have gone.
        sessions.holding.end(true);
        return renamed;
      })
      .finally(limit.end);
    feed.taken(taken);
    return { done: true, heldMs: changed - locked, keys: keys.length };
  } catch (error) {
    await rollback(sessions.work);
    const late = error instanceof DeadlineError || isTimeout(error);
    if (!late) throw error;
    if (locked > 0 && isLockTimeout(error)) return later(partsLocked, await watch.found());
    return later(locked === 0 ? notHad : `it would have held its locks for more than ${maxHoldMs} ms`, blockers);
  } finally {
    watch.end();
    marker.forget();
    sessions.holding.end(false);
  }
}

/** What ends a migration: the names change for good. Waits for locks as a cutover does. */
export async function endMigration(sessions: MigrationSessions, migration: Migration, how: 'finalize' | 'cancel'): Promise<SwitchOutcome> {
  const truth = how === 'finalize' ? 'target' : 'source';
  let watch = noWatch;
  try {
    await sessions.work.query('BEGIN');
    const views = [...layoutViews(migration, truth), ...lastingViewNames(migration)].map(qualified);
    const dependents = await dependentsOf(sessions, migration, views);
    const lock = await lockAll(
      sessions,
      [...dependents.map(({ name }) => name), ...lockedAtEnd(migration, truth).map(qualified)],
      migration.options,
      { statementMs: 0, before: async () => undefined, along: [] },
    );
    if (!lock.had) {
      await rollback(sessions.work);
      return later(notHad, lock.blockers);
    }
    const locked = performance.now();
    const steps = how === 'finalize' ? finalizeSql(migration) : cancelSql(migration);
    watch = watchBlockers(sessions, heldLockMs / 2);
    const changed = await changeNames(sessions, dependents, await answer(sessions, how, steps), [
      phaseSql(migration.id, how === 'finalize' ? 'finished' : 'cancelled', ['ended_at = clock_timestamp()', 'request = NULL']),
    ]);
    sessions.holding.end(true);
    await tellOthers(sessions);
    return { done: true, heldMs: changed - locked, keys: 0 };
  } catch (error) {
    await rollback(sessions.work);
    if (!isLockTimeout(error)) throw error;
    return later(partsLocked, await watch.found());
  } finally {
    watch.end();
    sessions.holding.end(false);
  }
}

/** A statement that was planned is not planned again, whatever its parameters. */
const plansLast = 'SET LOCAL plan_cache_mode = force_generic_plan';

/** What is going to bring the last keys up to date under locks is planned before them. */
async function planAhead({ migration, sessions: { work }, sync }: Following): Promise<void> {
  await begin(work, 'READ COMMITTED', migration.options.lockTimeoutMs);
  await work.query(plansLast);
  await applyKeys(work, migration.source.owner.name, sync, sync.applyAnew, []);
  await work.query('COMMIT');
}

/** What is to be said under locks. Before them: so that it is answered quickly then. */
async function answer({ work }: MigrationSessions, name: string, steps: readonly Step[]): Promise<readonly string[]> {
  const questions = questionsSql(steps);
  if (questions === null) return answered(steps, []);
  return answered(steps, (await work.execute(`steps of ${name}`, questions, [])).rows);
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

/**
 * The names change, views of the user that read what has moved are taken along, the phase is written, and all of it commits; `tellOthers` is to follow.
 * The locks are not held while the disk, or a standby, is waited for: whatever commits after it is behind it in the WAL, so a crash cannot leave that
 * without this. When it takes this, too, the request is there again, and is carried out again.
 */
async function changeNames(
  { work }: MigrationSessions,
  dependents: readonly Dependent[],
  statements: readonly string[],
  after: readonly string[],
): Promise<number> {
  await work.query(
    [
      ...dependents.map(({ detach }) => detach),
      ...statements,
      ...dependents.map(({ create }) => create),
      ...after,
      'SET LOCAL synchronous_commit = off',
      'COMMIT',
    ].join(';\n'),
  );
  return performance.now();
}

/**
 * `statement_timeout` bounds each statement, and there are many: when the time of all of them is over, what `work` is at is cancelled. No cancel can
 * come any more once `end` has resolved.
 */
function cancelLate({ work, beside }: MigrationSessions, ms: number): { readonly end: () => Promise<void> } {
  let sent: Promise<unknown> | null = null;
  const timer = setTimeout(() => {
    sent = beside.query('SELECT pg_catalog.pg_cancel_backend($1)', [work.backendPid]).catch(() => undefined);
  }, ms);
  return {
    end: async () => {
      clearTimeout(timer);
      await sent;
    },
  };
}

/** Everybody who has read the catalog reads it again; what has changed is on disk before. */
export async function tellOthers({ work }: MigrationSessions): Promise<void> {
  await work.query("SELECT pg_catalog.pg_notify('millrace', '')");
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
