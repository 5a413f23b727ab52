/**
 * Arguments of the functions that create and alter stream tables.
 * Invariant: no argument is ignored: it is honoured, or refused with the reason.
 */
import { parseSchedule, ScheduleError } from '../catalog/schedule.ts';
import { type MillraceError, millraceError } from '../errors.ts';
import { quoteLiteral } from '../sql/quote.ts';

export type RefreshMode = 'AUTO' | 'DIFFERENTIAL' | 'FULL' | 'IMMEDIATE';

/** Arguments as Postgres has resolved them, by name; what was left out has its default. */
export type Arguments = Readonly<Record<string, unknown>>;

/** What is kept of the arguments beside query, schedule and mode. */
export type StreamOptions = Readonly<Record<string, unknown>>;

export function invalidArgument(message: string): MillraceError {
  return millraceError('stream_table_argument', { message });
}

/** A text argument that must be there. */
export function requiredText(given: Arguments, name: string): string {
  const value = given[name];
  if (typeof value !== 'string') throw invalidArgument(`${name} must not be null`);
  return value;
}

export function refreshMode(value: unknown): RefreshMode {
  const mode = String(value ?? 'AUTO').toUpperCase();
  switch (mode) {
    case 'AUTO':
    case 'DIFFERENTIAL':
    case 'FULL':
    case 'IMMEDIATE':
      return mode;
    default:
      throw invalidArgument(`invalid refresh_mode value: '${String(value)}' (expected 'AUTO', 'FULL', 'DIFFERENTIAL', or 'IMMEDIATE')`);
  }
}

/** A schedule as it is kept. Raises for one that never comes due. One that is kept within the statements of writers has none: null. */
export function checkedSchedule(value: unknown, mode: RefreshMode): string | null {
  if (mode === 'IMMEDIATE') {
    if (value === undefined || value === null || String(value).trim().toLowerCase() === 'calculated') return null;
    throw invalidArgument("refresh_mode = 'IMMEDIATE' is incompatible with a schedule: it is never behind");
  }
  if (typeof value !== 'string') throw invalidArgument("use 'calculated' instead of NULL to set CALCULATED schedule");
  try {
    return parseSchedule(value).kind === 'calculated' ? 'calculated' : value.trim();
  } catch (error) {
    throw error instanceof ScheduleError ? invalidArgument(error.message) : error;
  }
}

interface Rule {
  /** Null: any value of the type. */
  readonly values: readonly (string | number | boolean)[] | null;
  /** The values that mean what happens anyway. */
  readonly honoured: readonly unknown[];
  readonly why: string;
}

const noPartitions = 'The rows are kept in one table of Millrace.';
const oneServer = 'There is one server.';

/** Parameters beside name, query, schedule, refresh_mode and initialize. NULL always means the default. */
const rules: Readonly<Record<string, Rule>> = {
  diamond_consistency: {
    values: ['none', 'atomic'],
    honoured: ['none'],
    why: 'Stream tables are refreshed each on a schedule of its own.',
  },
  diamond_schedule_policy: {
    values: ['fastest', 'slowest'],
    honoured: ['fastest'],
    why: "diamond_schedule_policy = 'slowest' requires diamond_consistency = 'atomic'.",
  },
  cdc_mode: {
    values: ['auto', 'trigger', 'wal'],
    honoured: ['auto', 'wal'],
    why: 'Changes are taken from the WAL; triggers are for servers that do not stream it.',
  },
  append_only: { values: null, honoured: [false], why: 'Updates and deletes of the sources are always taken in.' },
  pooler_compatibility_mode: { values: null, honoured: [false, true], why: '' },
  partition_by: { values: null, honoured: [], why: noPartitions },
  max_differential_joins: { values: null, honoured: [0], why: 'The number of joins does not make a refresh fall back to FULL.' },
  max_delta_fraction: { values: null, honoured: [0], why: 'The size of the changes does not make a refresh fall back to FULL.' },
  output_distribution_column: { values: null, honoured: [], why: oneServer },
  temporal: { values: null, honoured: [false], why: 'Former rows are not kept.' },
  storage_backend: { values: null, honoured: ['heap'], why: noPartitions },
  tier: {
    values: ['hot', 'warm', 'cold', 'frozen'],
    honoured: ['hot'],
    why: 'The schedule says how often it is refreshed; nothing multiplies it.',
  },
  fuse: { values: ['off', 'on', 'auto'], honoured: ['off'], why: 'Large changes do not stop a stream table.' },
  fuse_ceiling: { values: null, honoured: [], why: 'Large changes do not stop a stream table.' },
  fuse_sensitivity: { values: null, honoured: [], why: 'Large changes do not stop a stream table.' },
  post_refresh_action: {
    values: ['none', 'analyze', 'reindex', 'reindex_if_drift'],
    honoured: ['none'],
    why: 'Statistics and indexes are kept by Postgres (autovacuum).',
  },
  reindex_drift_threshold: { values: null, honoured: [], why: 'Statistics and indexes are kept by Postgres (autovacuum).' },
};

/** Options that IMMEDIATE does not go with. */
export function requireImmediateOptions(given: Arguments): void {
  if (given['cdc_mode'] === 'wal') {
    throw invalidArgument(
      "refresh_mode = 'IMMEDIATE' is incompatible with cdc_mode = 'wal'. Changes are taken in by triggers, within the statements.",
    );
  }
  if (given['append_only'] === true) throw invalidArgument('append_only is not supported with IMMEDIATE refresh mode.');
  if (isGiven(given['partition_by'])) throw invalidArgument('partition_by is not supported with IMMEDIATE refresh mode.');
}

export function isGiven(value: unknown): boolean {
  return value !== undefined && value !== null;
}

/** The options among the arguments. Raises for what is not an option's value, and for what Millrace does not do. */
export function checkedOptions(given: Arguments): StreamOptions {
  const options: Record<string, unknown> = {};
  for (const [name, rule] of Object.entries(rules)) {
    const value = given[name];
    if (value === undefined || value === null) continue;
    const known = typeof value === 'string' && rule.values !== null ? value.toLowerCase() : value;
    if (rule.values !== null && !rule.values.some((one) => one === known)) {
      throw invalidArgument(`invalid ${name} value: '${String(value)}' (expected ${alternatives(rule.values)})`);
    }
    requirePositive(name, value);
    if (!rule.honoured.includes(known))
      throw refused(`${name} => ${typeof value === 'string' ? quoteLiteral(value) : String(value)}`, rule.why, 'Leave it out.');
    options[name] = known;
  }
  return options;
}

function requirePositive(name: string, value: unknown): void {
  if ((name === 'fuse_ceiling' || name === 'fuse_sensitivity') && Number(value) <= 0) {
    throw invalidArgument(`${name} must be a positive integer`);
  }
  if (name === 'max_differential_joins' && Number(value) < 0) {
    throw invalidArgument('max_differential_joins must be a non-negative integer (0 disables the limit)');
  }
  if (name === 'max_delta_fraction' && Number(value) < 0) {
    throw invalidArgument('max_delta_fraction must be a non-negative number (0 disables the limit)');
  }
}

function alternatives(values: readonly (string | number | boolean)[]): string {
  const quoted = values.map((value) => `'${value}'`);
  const last = quoted.pop() ?? '';
  return `${quoted.join(', ')}${quoted.length > 1 ? ',' : ''} or ${last}`;
}

function refused(name: string, detail: string, hint: string): MillraceError {
  return millraceError('unsupported_parameter', { name, detail, hint });
}
