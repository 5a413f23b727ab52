/**
 * Waiting for a migration after a commit.
 * Invariant: as in wait.ts: short statements over the caller's own session, no snapshot held between two looks, Ctrl-C ends it, and the engine goes on
 * with what it was asked for whether anybody waits or not.
 */
import type { MigrationOptions, MigrationPhase, MigrationRequest } from '../migration/model.ts';
import { triedAgain } from '../migration/problems.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { firstRow } from './context.ts';

/** How long ALTER MIGRATION waits for what it asks for. */
const requestPatienceMs = 60_000;
const noticeEveryMs = 2000;
/** Errors before the cutover are tried again by the engine, and most pass: only one that stays so long ends the wait. */
const errorPatienceMs = 10_000;
/** Of what does not pass by itself. */
const mendPatienceMs = 2_000;

interface Blocker {
  readonly pid: number | null;
  readonly query?: string | null;
  readonly age_ms?: number | null;
}

interface State {
  readonly phase: MigrationPhase;
  readonly request: string | null;
  readonly paused: boolean;
  readonly error: { readonly message: string; readonly detail?: string; readonly hint?: string } | null;
  readonly rowsCopied: number;
  readonly rowsTotal: number | null;
  readonly attempts: number;
  readonly blockedBy: readonly Blocker[];
  readonly holdMs: number | null;
}

interface Awaited {
  readonly id: string;
  readonly name: string;
}

/** Null: it is not there, because what made it was rolled back to a savepoint. */
async function look(session: CallerSession, id: string, pause: number): Promise<State | null> {
  const row = await firstRow(
    session,
    `SELECT s.phase, s.request, s.paused, s.error, s.rows_copied, s.rows_total, s.attempts, s.blocked_by, s.hold_ms
       FROM pg_catalog.pg_sleep($1) AS slept, LATERAL millrace.migration_state($2::bigint) AS s`,
    [String(pause), id],
  );
  const [phase, request, paused, error, copied, total, attempts, blockedBy, holdMs] = row ?? [];
  if (phase === null || phase === undefined) return null;
  const number = (text: string | null | undefined): number | null => (text === null || text === undefined ? null : Number(text));
  return {
    phase: phase as MigrationPhase,
    request: request ?? null,
    paused: paused === 't',
    error: error === null || error === undefined ? null : JSON.parse(error),
    rowsCopied: number(copied) ?? 0,
    rowsTotal: number(total),
    attempts: number(attempts) ?? 0,
    blockedBy: blockedBy === null || blockedBy === undefined ? [] : JSON.parse(blockedBy),
    holdMs: number(holdMs),
  };
}

/** Looks until `isOver`, or until the time is over; tells how far it is meanwhile. Answers the last state; null: the migration is gone. */
async function waitUntil(
  session: CallerSession,
  { id, name }: Awaited,
  isOver: (state: State) => boolean,
  patienceMs: number,
): Promise<State | null> {
  const started = Date.now();
  let announced = started;
  for (let pause = 0.002; ; pause = Math.min(pause * 1.5, 0.2)) {
    const state = await look(session, id, pause);
    if (state === null || isOver(state) || Date.now() - started >= patienceMs) return state;
    if (Date.now() - announced < noticeEveryMs) continue;
    announced = Date.now();
    session.notice({ severity: 'NOTICE', code: '00000', message: `migration "${name}": ${progressText(state)}` });
  }
}

function progressText(state: State): string {
  const { phase, rowsCopied, rowsTotal, attempts } = state;
  const blockers = blockersText(state) || (state.error?.message ?? '');
  if (state.error !== null && phase !== 'ready' && phase !== 'cut_over') return `${phase}, held up: ${state.error.message}`;
  switch (phase) {
    case 'creating':
      return 'being set up';
    case 'copying':
      return `${rowsCopied}${rowsTotal === null || rowsTotal < rowsCopied ? '' : ` of about ${rowsTotal}`} rows copied`;
    case 'ready':
    case 'cut_over':
      return attempts === 0 && blockers === ''
        ? phase.replace('_', ' ')
        : `${attempts} attempts so far${blockers === '' ? '' : `; ${blockers}`}`;
    default:
      return phase;
  }
}

const blockersText = ({ blockedBy }: State): string =>
  blockedBy
    .map(({ pid, query, age_ms }) => {
      const details = [
        ...(age_ms === null || age_ms === undefined ? [] : [`${(age_ms / 1000).toFixed(1)} s`]),
        ...(query === null || query === undefined ? [] : [query]),
      ];
      return `blocked by ${pid === null ? 'a prepared transaction' : `pid ${pid}`}${details.length === 0 ? '' : ` (${details.join(', ')})`}`;
    })
    .join('; ');

/** What keeps a migration from going on, as a warning: it stays, and the engine tries again by itself. */
function warnOfError(session: CallerSession, name: string, error: NonNullable<State['error']>): void {
  session.notice({
    severity: 'WARNING',
    code: '01000',
    message: `migration "${name}" cannot go on: ${error.message}`,
    ...(error.detail === undefined ? {} : { detail: error.detail }),
    hint: `${error.hint ?? 'Millrace tries again by itself.'} To give it up: ALTER MIGRATION ${quoteIdentifier(name)} CANCEL;`,
  });
}

/** What is in the way, as a sentence. */
function obstacle(state: State): string {
  const blockers = blockersText(state);
  if (blockers !== '') return `It is ${blockers}. `;
  return state.error === null ? '' : `The last problem: ${state.error.message.replace(/\.$/, '')}. `;
}

const isEnded = (phase: MigrationPhase): boolean => phase === 'finished' || phase === 'cancelled';

/** After CREATE MIGRATION has committed: returns when it is ready for the cutover, or has cut over where that comes by itself. */
export async function awaitMigration(session: CallerSession, awaited: Awaited, cutover: MigrationOptions['cutover']): Promise<void> {
  const goal: readonly MigrationPhase[] =
    cutover === 'auto' ? ['cut_over', 'finished', 'cancelled'] : ['ready', 'cut_over', 'finished', 'cancelled'];
  let failingSince: number | null = null;
  const isOver = ({ phase, error, paused }: State): boolean => {
    // Of an attempt to cut over that failed, the next one comes by itself.
    failingSince = error === null || phase === 'ready' ? null : (failingSince ?? Date.now());
    return goal.includes(phase) || paused || (failingSince !== null && Date.now() - failingSince >= errorPatienceMs);
  };
  const state = await waitUntil(session, awaited, isOver, Number.POSITIVE_INFINITY);
  if (state === null || isEnded(state.phase)) return;
  const { name } = awaited;
  const quoted = quoteIdentifier(name);
  if (!goal.includes(state.phase) && state.error !== null) return warnOfError(session, name, state.error);
  if (!goal.includes(state.phase)) {
    session.notice({
      severity: 'NOTICE',
      code: '00000',
      message: `migration "${name}" is paused`,
      hint: `ALTER MIGRATION ${quoted} RESUME;`,
    });
    return;
  }
  const message =
    state.phase === 'ready' ? `migration "${name}" is ready: ${state.rowsCopied} rows copied, and verified` : cutOverText(name, state);
  const hint =
    state.phase === 'ready' ? `ALTER MIGRATION ${quoted} CUTOVER;` : `ALTER MIGRATION ${quoted} FINALIZE; ends it, REVERT goes back.`;
  session.notice({ severity: 'NOTICE', code: '00000', message, hint });
}

const held = ({ holdMs, attempts }: State): string =>
  `: ${holdMs === null ? '' : `locks were held for ${holdMs.toFixed(1)} ms, `}${attempts} ${attempts === 1 ? 'attempt' : 'attempts'}`;
const cutOverText = (name: string, state: State): string => `migration "${name}" cut over${held(state)}`;

/** What has to have come of a request, and how it is told. */
const outcomes: Readonly<Record<MigrationRequest, { readonly phases: readonly MigrationPhase[]; readonly verb: string }>> = {
  cutover: { phases: ['cut_over', 'finished'], verb: 'cut over' },
  revert: { phases: ['copying', 'verifying', 'ready', 'cancelled'], verb: 'gone back' },
  finalize: { phases: ['finished'], verb: 'been finalized' },
  cancel: { phases: ['cancelled'], verb: 'been cancelled' },
  verify: { phases: ['verifying', 'ready', 'cut_over'], verb: 'been verified' },
};

const isToBeMended = (error: State['error']): boolean => error?.hint !== undefined && error.hint !== triedAgain;

/** After ALTER MIGRATION has committed: returns when the engine has done what was asked, or when that takes too long; it then goes on trying. */
export async function awaitRequest(session: CallerSession, awaited: Awaited, request: MigrationRequest): Promise<void> {
  let stoppedSince: number | null = null;
  const isOver = ({ request: now, error }: State): boolean => {
    // What somebody has to mend first is told soon.
    stoppedSince = isToBeMended(error) ? (stoppedSince ?? Date.now()) : null;
    return now !== request || (stoppedSince !== null && Date.now() - stoppedSince >= mendPatienceMs);
  };
  const state = await waitUntil(session, awaited, isOver, requestPatienceMs);
  if (state === null) return;
  const { name } = awaited;
  const { phases, verb } = outcomes[request];
  if (state.request === request || !phases.includes(state.phase)) {
    session.notice({
      severity: 'WARNING',
      code: '01000',
      message: `migration "${name}" has not ${verb} yet`,
      detail: `${state.attempts > 0 ? `${state.attempts} attempts so far. ` : ''}${obstacle(state)}${
        state.request === request ? 'Millrace goes on trying.' : 'It is not asked for any more.'
      }`,
      hint: isToBeMended(state.error) ? (state.error?.hint ?? '') : 'SHOW MIGRATIONS; says how far it is.',
    });
    return;
  }
  session.notice({ severity: 'NOTICE', code: '00000', message: await outcomeText(session, awaited, request, state) });
}

async function outcomeText(session: CallerSession, { id, name }: Awaited, request: MigrationRequest, state: State): Promise<string> {
  switch (request) {
    case 'cutover':
      return cutOverText(name, state);
    case 'revert':
      return `migration "${name}" went back to the old shape${held(state)}`;
    case 'finalize':
      return `migration "${name}" is finished`;
    case 'cancel':
      return `migration "${name}" is cancelled: nothing of it is left`;
    case 'verify': {
      const row = await firstRow(session, 'SELECT m.differences, m.repaired FROM millrace.migrations m WHERE m.id = $1::bigint', [id]);
      return `migration "${name}" was verified: ${row?.[0] ?? 0} differences, ${row?.[1] ?? 0} rows ever repaired`;
    }
  }
}
