/**
 * When a stream table is to be refreshed. Pure.
 * Invariant: a schedule that parses has a next time after every time; cron expressions are read in UTC.
 * Grammar: `30s`, `5m`, `1h30m`, `1d`, `1w`, a bare number of seconds; five or six cron fields or `@hourly` and kin; `calculated`.
 */
import { Cron } from 'croner';

export type Schedule =
  /** As soon as possible, or together with what reads it. */
  | { readonly kind: 'calculated' }
  | { readonly kind: 'every'; readonly ms: number }
  | { readonly kind: 'cron'; readonly expression: string };

/** What is wrong with a schedule, in words for the user. */
export class ScheduleError extends Error {}

const units: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800 };

/** Reads a schedule as given; null stands for none of its own. Throws ScheduleError. */
export function parseSchedule(text: string | null): Schedule {
  const trimmed = text?.trim() ?? 'calculated';
  if (trimmed === '') throw new ScheduleError('schedule cannot be empty');
  if (trimmed.toLowerCase() === 'calculated') return { kind: 'calculated' };
  if (trimmed.startsWith('-')) throw new ScheduleError(`schedule cannot be negative: '${trimmed}'`);
  return /[\s@]/.test(trimmed) ? cron(trimmed) : { kind: 'every', ms: duration(trimmed) * 1000 };
}

function cron(expression: string): Schedule {
  const fields = expression.split(/\s+/).length;
  if (!expression.startsWith('@') && fields !== 5 && fields !== 6) {
    throw new ScheduleError(`invalid cron expression '${expression}': expected 5 or 6 fields, got ${fields}`);
  }
  try {
    const next = new Cron(expression, { timezone: 'UTC', paused: true }).nextRun();
    if (next === null) throw new ScheduleError(`invalid cron expression '${expression}': it never comes due`);
  } catch (error) {
    if (error instanceof ScheduleError) throw error;
    throw new ScheduleError(`invalid cron expression '${expression}': ${error instanceof Error ? error.message : String(error)}`);
  }
  return { kind: 'cron', expression };
}

/** In seconds. */
function duration(text: string): number {
  let seconds = 0;
  if (/^\d+$/.test(text)) seconds = Number(text);
  else {
    const parts = [...text.matchAll(/(\d*)([a-zA-Z]+|$)/g)].filter(([part]) => part !== '');
    if (parts.map(([part]) => part).join('') !== text) throw new ScheduleError(`invalid duration '${text}'`);
    for (const [, digits = '', unit = ''] of parts) {
      if (unit === '') {
        throw new ScheduleError(`trailing digits '${digits}' without a unit in duration '${text}'. Use units s, m, h, d or w.`);
      }
      const size = units[unit.toLowerCase()];
      if (size === undefined) throw new ScheduleError(`invalid duration unit '${unit}' in '${text}'. Use units s, m, h, d or w.`);
      if (digits === '') throw new ScheduleError(`expected a number before '${unit}' in duration '${text}'`);
      seconds += Number(digits) * size;
    }
  }
  if (!Number.isSafeInteger(seconds * 1000)) throw new ScheduleError(`invalid duration '${text}'`);
  if (seconds < 1) throw new ScheduleError(`schedule must be at least 1s, got ${seconds}s`);
  return seconds;
}

/** The first time after `after` at which it is due, in milliseconds; null for a calculated one. */
export function nextTime(schedule: Schedule, after: number): number | null {
  switch (schedule.kind) {
    case 'calculated':
      return null;
    case 'every':
      return after + schedule.ms;
    case 'cron':
      return new Cron(schedule.expression, { timezone: 'UTC', paused: true }).nextRun(new Date(after))?.getTime() ?? after + 60_000;
  }
}
