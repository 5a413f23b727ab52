/**
 * WITH (..) of CREATE MIGRATION and SET (..) of ALTER MIGRATION, from what was typed to what is stored.
 * Invariant: intervals and sizes are read by Postgres, so that they mean what they mean there.
 */
import { millraceError } from '../errors.ts';
import { defaultOptions, type MigrationOptions } from '../migration/model.ts';
import { shortened } from '../migration/places.ts';
import type { MigrationOption } from '../sql/ast.ts';
import type { CallerSession } from './caller-session.ts';
import { firstRow } from './context.ts';

/** Within which limits an option makes sense: milliseconds, bytes. */
const limits = {
  'lock timeout': { least: 1, most: 60_000, key: 'lockTimeoutMs', example: '100ms' },
  'max hold': { least: 10, most: 60_000, key: 'maxHoldMs', example: '250ms' },
  'max lag': { least: 10, most: 86_400_000, key: 'maxLagMs', example: '2s' },
  'reverse window': { least: 0, most: Number.MAX_SAFE_INTEGER, key: 'reverseWindowMs', example: '24h' },
  chunk: { least: 65_536, most: 1_073_741_824, key: 'chunkBytes', example: '8MB' },
} as const;

type Changes = Partial<{ -readonly [K in keyof MigrationOptions]: MigrationOptions[K] }>;

export async function givenMigrationOptions(session: CallerSession, options: readonly MigrationOption[]): Promise<Changes> {
  const changes: Changes = {};
  for (const given of options) {
    switch (given.option) {
      case 'cutover':
        changes.cutover = given.value === 'manual' ? 'manual' : 'auto';
        break;
      case 'new version':
        changes.newVersion = schemaName(given);
        break;
      case 'old version':
        changes.oldVersion = schemaName(given);
        break;
      case 'reverse window':
        changes.reverseWindowMs = given.value.toLowerCase() === 'none' ? null : await measured(session, given, 'reverse window');
        break;
      default:
        changes[limits[given.option].key] = await measured(session, given, given.option);
    }
  }
  return changes;
}

function schemaName({ option, value, at }: MigrationOption): string {
  if (value !== '' && !/^pg_/.test(value)) return value;
  throw millraceError(
    'invalid_option',
    { message: `invalid ${option.toUpperCase()}: "${value}"`, hint: 'Give the name of a schema.' },
    { position: at + 1 },
  );
}

async function measured(session: CallerSession, { option, value, at }: MigrationOption, name: keyof typeof limits): Promise<number> {
  const { least, most, example } = limits[name];
  const sql = name === 'chunk' ? 'SELECT pg_catalog.pg_size_bytes($1)' : 'SELECT 1000 * extract(epoch FROM $1::pg_catalog.interval)';
  const number = Number((await firstRow(session, sql, [value]))?.[0] ?? Number.NaN);
  if (number >= least && number <= most) return number;
  const unit = name === 'chunk' ? 'bytes' : 'ms';
  const range =
    name === 'reverse window' ? `NONE or an interval, such as '${example}'` : `between ${least} and ${most} ${unit}, such as '${example}'`;
  throw millraceError(
    'invalid_option',
    { message: `invalid ${option.toUpperCase()}: "${value}"`, hint: `It is ${range}.` },
    { position: at + 1 },
  );
}

/** All options of a migration `name`, defaults where nothing was given. */
export function withDefaults(name: string, given: Changes): MigrationOptions {
  return { ...defaultOptions, oldVersion: `${shortened(name, 59)}_old`, newVersion: `${shortened(name, 59)}_new`, ...given };
}
