/** What EXPLAIN CREATE MIGRATION says: what will be made, step by step with the lock of each, what it costs, and what speaks against it. Pure. */
import { quoteIdentifier, quoteQualified } from '../sql/quote.ts';
import type { Examined } from './examined.ts';
import { type TableFacts, tableName } from './facts.ts';
import type { Finding } from './finding.ts';
import { shownAge } from './findings.ts';
import type { MigrationDefinition } from './model.ts';

export function explainLines(examined: Examined, found: readonly Finding[]): readonly string[] {
  return [...subject(examined), ...steps(examined), ...costs(examined), ...rights(examined), ...shownFindings(found)];
}

const names = (list: readonly string[]): string => list.map(quoteIdentifier).join(', ');

function change(definition: MigrationDefinition, table: string): string {
  switch (definition.kind) {
    case 'move':
      return `move ${names(definition.columns)} from ${table} to new table ${quoteQualified(definition.target.schema, definition.target.name)}`;
    case 'alter':
      return `${table} with ${definition.columns.map(({ column, type }) => `${quoteIdentifier(column)} ${type}`).join(', ')}`;
    case 'split':
      return `${table} with ${definition.into.map(({ name, type }) => `${quoteIdentifier(name)} ${type}`).join(', ')} in place of ${quoteIdentifier(definition.column)}`;
  }
}

function subject({ name, definition, facts, options }: Examined): readonly string[] {
  return [
    `Migration ${quoteIdentifier(name)}: ${change(definition, tableName(facts.table))}`,
    `  Versions: ${quoteIdentifier(options.oldVersion)} has the old shape, ${quoteIdentifier(options.newVersion)} the new one; both can be read and written at any time`,
    `  Cutover: ${options.cutover === 'auto' ? 'by itself, after a pass of verification without differences' : `by ALTER MIGRATION ${quoteIdentifier(name)} CUTOVER`}`,
    `  Until FINALIZE the old shape is kept current, so REVERT loses nothing${options.reverseWindowMs === null ? '' : `; finalized by itself ${shownAge(options.reverseWindowMs)} after the cutover`}`,
  ];
}

/** A step, its lock on the table, and for how long. */
interface Step {
  readonly what: string;
  readonly lock: string;
}

/** Tables at the other ends of foreign keys. */
const otherEnds = ({ source, foreignKeysIn, foreignKeysOut }: TableFacts): readonly string[] => [
  ...new Set(
    [...foreignKeysIn, ...foreignKeysOut].map(({ table }) => table).filter((name) => name !== quoteQualified(source.schema, source.name)),
  ),
];

/** What the cutover locks. */
function cutoverLock({ definition, facts }: Examined): string {
  const ends = definition.kind === 'move' ? [] : [...otherEnds(facts.table)].sort();
  const all = ['the table', 'its views', ...ends];
  return `ACCESS EXCLUSIVE on ${all.slice(0, -1).join(', ')} and ${all.at(-1)}`;
}

/** Foreign keys of the user stay with a table whose columns are moved; those of a table that is replaced go to the new one. */
function foreignKeySteps({ definition, facts }: Examined): readonly Step[] {
  if (definition.kind === 'move') {
    return [
      {
        what: 'Validate the foreign key of the new table to the old one, which the cutover adds NOT VALID',
        lock: 'ROW SHARE; on the new table SHARE UPDATE EXCLUSIVE',
      },
    ];
  }
  if (otherEnds(facts.table).length === 0) return [];
  return [
    {
      what: 'Validate foreign keys, which the cutover has led to the new table NOT VALID',
      lock: 'SHARE UPDATE EXCLUSIVE and ROW SHARE, on the table and those at their other ends',
    },
  ];
}

function steps(examined: Examined): readonly string[] {
  const { definition, options } = examined;
  const hold = shownAge(options.maxHoldMs);
  const moves = definition.kind === 'move';
  const list: Step[] = [
    {
      what: `Create the target table, empty, and views of the new shape (before the cutover ${quoteIdentifier(options.oldVersion)} is empty: the table has the old one)`,
      lock: 'ACCESS SHARE, to the end of the transaction',
    },
    {
      what: 'Publish the table and begin to read its changes from the WAL',
      lock: 'SHARE UPDATE EXCLUSIVE, a moment; nobody who reads or writes waits',
    },
    {
      what: `Copy in pieces of ${bytes(options.chunkBytes)} by the key, and apply changes meanwhile`,
      lock: 'ACCESS SHARE; no row is locked',
    },
    {
      what: 'Compare all rows piece by piece, each at one snapshot, repair, and compare again until a whole pass is clean',
      lock: 'ACCESS SHARE; no row is locked',
    },
    {
      what: 'Cut over, when nothing is behind',
      lock: `${cutoverLock(examined)}, waited for at most ${shownAge(options.lockTimeoutMs)} and held at most ${hold}, else given up and tried again; the first tries last 5 ms, in either order`,
    },
    ...foreignKeySteps(examined),
    {
      what: 'Keep the old shape current, until FINALIZE',
      lock: moves
        ? 'ROW EXCLUSIVE and locks of the rows that are written back; gives way when one is not to be had in 100 ms, and comes back'
        : 'ACCESS SHARE; what is written is the old table, which nobody else uses',
    },
    {
      what: moves ? 'Drop the moved columns from the old table' : 'Drop the old table',
      lock: 'ACCESS EXCLUSIVE, a moment, waited for as at the cutover',
    },
  ];
  return ['Steps:', ...list.flatMap(({ what, lock }, i) => [`  ${i + 1}. ${what}`, `       Lock: ${lock}`])];
}

/** What the target takes: all of it, or the part of the columns that are in it. */
function targetBytes(table: TableFacts, definition: MigrationDefinition): { readonly heap: number; readonly indexes: number } {
  const heap = table.bytes + table.toastBytes;
  if (definition.kind !== 'move') return { heap, indexes: table.indexBytes };
  const part = (definition.columns.length + definition.key.length) / Math.max(table.source.columns.length, 1);
  const indexes = table.indexBytes / Math.max(table.indexes.length, 1);
  return { heap: heap * Math.min(part, 1), indexes };
}

function costs({ definition, facts }: Examined): readonly string[] {
  const { table, surroundings } = facts;
  const { heap, indexes } = targetBytes(table, definition);
  const isCounted = table.rows > 0 || table.bytes === 0;
  return [
    'Costs:',
    `  Rows: ${isCounted ? `about ${Math.round(table.rows)}` : 'not known, the table was never analyzed'}; table ${bytes(table.bytes)}, indexes ${bytes(table.indexBytes)}, TOAST ${bytes(table.toastBytes)}`,
    `  Written: about ${bytes(heap + indexes)} of tables and indexes, and about as much WAL`,
    `  Disk: that must be free in tablespace ${quoteIdentifier(surroundings.tablespace)} and where the WAL is (Postgres does not tell how much is); the database has ${bytes(surroundings.databaseBytes)}`,
  ];
}

function rights({ facts }: Examined): readonly string[] {
  const { caller, engine, database, slots, walSenders } = facts.surroundings;
  const yes = (it: boolean): string => (it ? 'yes' : 'NO');
  return [
    'Rights:',
    `  ${quoteIdentifier(caller.name)} may act as the owner ${quoteIdentifier(facts.table.source.owner.name)}: ${yes(caller.owns)}; may create schemas in ${quoteIdentifier(database)}: ${yes(caller.createInDatabase)}`,
    `  Millrace's role ${quoteIdentifier(engine.name)} is a superuser or may replicate and act as the owner: ${yes(engine.superuser || (engine.owns && engine.replication))}`,
    `  Replication slots in use: ${slots.used} of ${slots.max}; WAL senders: ${walSenders.used} of ${walSenders.max}`,
  ];
}

function shownFindings(found: readonly Finding[]): readonly string[] {
  const of = (severity: Finding['severity']): readonly string[] =>
    found
      .filter((one) => one.severity === severity)
      .flatMap((one) => [
        `  ${severity.toUpperCase()} ${one.code}: ${one.message}`,
        ...(one.detail === undefined ? [] : [`       Detail: ${one.detail}`]),
        ...(one.hint === undefined ? [] : [`       Hint: ${one.hint}`]),
      ]);
  const blockers = found.filter(({ severity }) => severity === 'blocker').length;
  const verdict =
    blockers === 0 ? 'nothing stands in the way' : `${blockers} ${blockers === 1 ? 'thing stands' : 'things stand'} in the way`;
  return [`Findings: ${verdict}`, ...of('blocker'), ...of('warning'), ...of('info')];
}

/** As pg_size_pretty. */
function bytes(count: number): string {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  let size = count;
  let unit = 0;
  while (size >= 10_240 && unit < units.length - 1) {
    size /= 1024;
    unit++;
  }
  return `${Math.round(size)} ${units[unit]}`;
}
