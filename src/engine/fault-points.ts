/**
 * Places where tests end the engine: between any two steps whose order matters.
 * Invariant: without MILLRACE_FAULT_POINT in the environment nothing here has an effect.
 * `MILLRACE_FAULT_POINT=epoch.applied` kills the process (SIGKILL) when it first comes to that point, `epoch.applied:3` when it does for the third time,
 * `epoch.applied:3:stop` stops it there (SIGSTOP), as a host does that hangs. test/fault/fault-points.test.ts goes through all of them: a point
 * named here is tested by being here.
 */

/** What comes before the dot is the work that has to be done for the point to be reached. */
export const faultPoints = [
  // Becoming leader.
  'leader.locked',
  'leader.token-raised',
  'leader.recovered',
  // A source: its slot, and what is told to the origin.
  'slot.created',
  'slot.recorded',
  'small.batch-taken',
  'small.epoch-begun',
  'small.epoch-sent',
  'small.epoch-committed',
  'small.recorded',
  'acknowledge.committed-not-flushed',
  'acknowledge.flushed-not-sent',
  'acknowledge.sent',
  'position.not-saved',
  'position.saved-not-sent',
  // A transaction that comes in parts.
  'large.begun',
  'large.part-applied',
  'large.last-applied',
  // An epoch step by step.
  'steps.begun',
  'steps.applied',
  'steps.views-kept',
  'steps.commit-sent',
  'steps.committed',
  // A first copy.
  'copy.began',
  'copy.snapshot-taken',
  'copy.rows-in',
  'copy.piece-noted',
  'copy.piece-committed',
  'copy.indexed',
  'copy.all-in',
  'copy.finished',
  'copy.held',
  'copy.spool-applied',
  'copy.gates-open',
  'copy.live',
  // New columns of a table that is there: they join the stream, and the rows from before get their values.
  'column.joined',
  'column.piece-merged',
  'column.merged',
  'column.shown',
  // A view is filled.
  'fill.began',
  'fill.snapshot-taken',
  'fill.filled',
  'fill.caught-up',
  'fill.ready',
  // A resynchronisation, from a new slot.
  'resync.slot-dropped',
  'resync.slot-made',
  'resync.marked',
  'resync.compared',
  'resync.difference-written',
  'resync.copies-dropped',
  'resync.finished',
  // The origin's schema changes.
  'ddl.learned',
  'ddl.epoch-waits',
  'ddl.versions-failed',
  // Stream tables over ordinary tables.
  'refresh.snapshot-taken',
  'refresh.changes-in',
  'refresh.committed',
] as const;

export type FaultPoint = (typeof faultPoints)[number];

interface Armed {
  readonly point: string;
  readonly pass: number;
  readonly signal: 'SIGKILL' | 'SIGSTOP';
}

/** What the environment variable says; null when it says nothing. Throws on a point that does not exist. */
export function parseFaultPoint(text: string | undefined): Armed | null {
  if (text === undefined || text === '') return null;
  const [point = '', pass = '1', mode = 'kill'] = text.split(':');
  if (!(faultPoints as readonly string[]).includes(point)) throw new Error(`MILLRACE_FAULT_POINT: there is no point ${point}`);
  return { point, pass: Number(pass), signal: mode === 'stop' ? 'SIGSTOP' : 'SIGKILL' };
}

const armed = parseFaultPoint(process.env['MILLRACE_FAULT_POINT']);
let passes = 0;

/** The engine has come to this point. */
export function reach(point: FaultPoint): void {
  if (armed === null || armed.point !== point || ++passes !== armed.pass) return;
  process.kill(process.pid, armed.signal);
}

/** It has come to this point once what it has written so far is with the kernel. */
export function reachSoon(point: FaultPoint): void {
  if (armed?.point === point) setImmediate(() => reach(point));
}
