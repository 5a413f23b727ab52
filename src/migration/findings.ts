/**
 * Everything that is wrong with a migration, or worth knowing, before it begins: from the facts alone.
 * Invariant: pure; the findings come in the order in which one would mend them, so the first blocker is the one to raise.
 */
import { quoteIdentifier } from '../sql/quote.ts';
import type { Examined } from './examined.ts';
import { type MigrationFacts, type OpenTransaction, type TableFacts, tableName } from './facts.ts';
import { blocker, type Finding, found, info, overlaps, warning } from './finding.ts';
import type { MigrationDefinition, MoveDefinition } from './model.ts';
import { moveFindings } from './move-findings.ts';
import { reshapeFindings } from './reshape-findings.ts';
import { typeFindings } from './type-findings.ts';

export function findings(examined: Examined): readonly Finding[] {
  const { facts, definition } = examined;
  const underWay = underWayFindings(facts);
  // Its views hang on the table: they would be found as well, to no use.
  if (underWay.length > 0) return underWay;
  return [
    ...tableFindings(facts.table, definition),
    ...rightsFindings(facts),
    ...(definition.kind === 'move' ? moveFindings(facts, definition) : reshapeFindings(facts, definition)),
    ...typeFindings(examined),
    ...placeFindings(examined),
    ...serverFindings(facts),
    ...surroundingFindings(facts, definition),
    ...transactionFindings(facts.surroundings.transactions),
  ];
}

const kinds: Readonly<Record<string, string>> = {
  v: 'a view',
  m: 'a materialized view',
  f: 'a foreign table',
  i: 'an index',
  I: 'an index',
  S: 'a sequence',
  c: 'a composite type',
  t: 'a TOAST table',
};

function tableFindings(table: TableFacts, definition: MigrationDefinition): readonly Finding[] {
  const name = tableName(table);
  const { source } = table;
  if (table.kind !== 'r' && table.kind !== 'p') {
    return [
      blocker('not_a_table', '42809', `"${source.name}" is not a table`, { detail: `It is ${kinds[table.kind] ?? 'something else'}.` }),
    ];
  }
  const reshapes = definition.kind !== 'move';
  const lacking = source.key.filter((column) => !table.identityColumns.includes(column));
  return [
    ...found(table.isSystem, () => blocker('system_table', '42809', `table ${name} belongs to the system`)),
    ...found(table.persistence === 't', () => blocker('temporary_table', '0A000', `table ${name} is temporary`)),
    ...found(table.persistence === 'u', () =>
      blocker('unlogged_table', '0A000', `table ${name} is unlogged`, {
        detail: 'Changes of unlogged tables are not in the WAL, from which Millrace reads them.',
        hint: `ALTER TABLE ${name} SET LOGGED;`,
      }),
    ),
    ...found(table.isPartition, () =>
      blocker('partition', '0A000', `table ${name} is a partition`, {
        detail: `It belongs to ${table.parents.join(', ')}.`,
        hint: 'Name the partitioned table.',
      }),
    ),
    ...(reshapes ? partitionFindings(table, definition) : []),
    ...found(!table.isPartition && table.children.length + table.parents.length > 0, () =>
      blocker('inheritance', '0A000', `table ${name} takes part in inheritance`, {
        detail: [
          ...(table.children.length > 0 ? [`Inherited by ${table.children.join(', ')}.`] : []),
          ...(table.parents.length > 0 ? [`Inherits from ${table.parents.join(', ')}.`] : []),
        ].join(' '),
        hint: 'ALTER TABLE .. NO INHERIT ends that.',
      }),
    ),
    ...found(source.key.length === 0, () =>
      blocker('no_primary_key', '55000', `table ${name} has no primary key`, {
        detail: 'Rows are copied, followed and compared by their key.',
        hint: `ALTER TABLE ${name} ADD PRIMARY KEY (..);`,
      }),
    ),
    ...found(table.identity === 'n', () =>
      blocker('replica_identity', '55000', `table ${name} has REPLICA IDENTITY NOTHING`, {
        detail: 'Its updates and deletes could not be told from the WAL.',
        hint: `ALTER TABLE ${name} REPLICA IDENTITY DEFAULT;`,
      }),
    ),
    ...found(table.identity === 'i' && lacking.length > 0, () =>
      blocker('replica_identity', '55000', `the replica identity of table ${name} lacks its key`, {
        detail: `The index has the columns ${table.identityColumns.join(', ')}, the primary key ${source.key.join(', ')}.`,
        hint: `ALTER TABLE ${name} REPLICA IDENTITY DEFAULT;`,
      }),
    ),
  ];
}

/** Partitions are made anew, as the table they belong to says. */
function partitionFindings(table: TableFacts, definition: Exclude<MigrationDefinition, MoveDefinition>): readonly Finding[] {
  const changed = definition.kind === 'split' ? [definition.column] : definition.columns.map(({ column }) => column);
  return [
    ...changed
      .filter((column) => table.partitionKey.includes(column))
      .map((column) => blocker('partition_key', '0A000', `column "${column}" is in the partition key of table ${tableName(table)}`)),
    ...table.partitionObjects.map((object) =>
      blocker('partition_object', '0A000', `${object} is of a partition alone`, {
        detail: 'The partitions of the new table have what the table as a whole has.',
        hint: 'Drop it, or make it one of the whole table.',
      }),
    ),
  ];
}

function rightsFindings({ table, surroundings }: MigrationFacts): readonly Finding[] {
  const { caller, engine, database } = surroundings;
  const owner = table.source.owner.name;
  const name = tableName(table);
  return [
    ...found(!caller.owns, () =>
      blocker('not_owner', '42501', `must be owner of table ${name}`, {
        detail: `It belongs to role "${owner}"; the current role is "${caller.name}".`,
        hint: `Act as its owner (SET ROLE ${quoteIdentifier(owner)};) or ask for membership: GRANT ${quoteIdentifier(owner)} TO ...;`,
      }),
    ),
    ...found(!caller.createInDatabase, () =>
      blocker('no_create_on_database', '42501', `permission denied for database ${database}`, {
        detail: 'The two shapes of the table stand in schemas of their own.',
        hint: `GRANT CREATE ON DATABASE ${quoteIdentifier(database)} TO ${quoteIdentifier(caller.name)};`,
      }),
    ),
    ...found(!engine.superuser && !(engine.owns && engine.replication), () =>
      blocker(
        'engine_rights',
        '42501',
        `role "${engine.name}" of Millrace's own connection may not carry out a migration of table ${name}`,
        {
          detail: `It must be a member of the owner, "${owner}", and have REPLICATION; or be a superuser.`,
          hint: [
            ...(engine.owns ? [] : [`GRANT ${quoteIdentifier(owner)} TO ${quoteIdentifier(engine.name)};`]),
            ...(engine.replication ? [] : [`ALTER ROLE ${quoteIdentifier(engine.name)} REPLICATION;`]),
          ].join(' '),
        },
      ),
    ),
  ];
}

function underWayFindings({ table, surroundings }: MigrationFacts): readonly Finding[] {
  return surroundings.migrations.map((other) =>
    blocker('migration_under_way', '55006', `migration "${other}" of table ${tableName(table)} is under way`, {
      hint: `Finish it (ALTER MIGRATION ${quoteIdentifier(other)} FINALIZE;) or give it up (ALTER MIGRATION ${quoteIdentifier(other)} CANCEL;).`,
    }),
  );
}

/** Where the new things go. */
function placeFindings({ facts, definition, options }: Examined): readonly Finding[] {
  const { surroundings } = facts;
  const taken = [...surroundings.schemasTaken, ...(options.newVersion === options.oldVersion ? [options.newVersion] : [])];
  const target = definition.kind === 'move' ? definition.target : null;
  return [
    ...(target === null
      ? []
      : [
          ...found(surroundings.caller.createInTarget === null, () =>
            blocker('no_target_schema', '3F000', `schema "${target.schema}" does not exist`, {
              hint: `CREATE SCHEMA ${quoteIdentifier(target.schema)};`,
            }),
          ),
          ...found(surroundings.caller.createInTarget === false, () =>
            blocker('no_create_on_schema', '42501', `permission denied for schema ${target.schema}`, {
              hint: `Its owner can grant it: GRANT CREATE ON SCHEMA ${quoteIdentifier(target.schema)} TO ${quoteIdentifier(surroundings.caller.name)};`,
            }),
          ),
          ...found(surroundings.targetExists, () =>
            blocker('target_exists', '42P07', `relation "${target.name}" already exists`, { hint: 'Choose another name behind TO TABLE.' }),
          ),
        ]),
    ...taken.map((schema) =>
      blocker('version_exists', '42P06', `schema "${schema}" already exists`, {
        detail: 'It was to hold a version of the table.',
        hint: 'Choose other names: WITH (NEW VERSION = .., OLD VERSION = ..).',
      }),
    ),
  ];
}

function serverFindings({ surroundings }: MigrationFacts): readonly Finding[] {
  const { walLevel, slots, walSenders } = surroundings;
  return [
    ...found(walLevel !== 'logical', () =>
      blocker('wal_level', '55000', `the server must have wal_level = logical, but has ${walLevel}`, {
        hint: 'ALTER SYSTEM SET wal_level = logical; then restart it.',
      }),
    ),
    ...found(slots.used >= slots.max, () =>
      blocker('no_free_slot', '53400', 'the server has no free replication slot', {
        detail: `max_replication_slots is ${slots.max} and all are in use.`,
        hint: 'Drop a slot that is not needed (see pg_replication_slots) or raise max_replication_slots.',
      }),
    ),
    ...found(walSenders.used >= walSenders.max, () =>
      blocker('no_free_wal_sender', '53300', 'the server has no free WAL sender', {
        detail: `max_wal_senders is ${walSenders.max} and all are in use.`,
        hint: 'End a replication connection that is not needed (see pg_stat_replication) or raise max_wal_senders.',
      }),
    ),
  ];
}

/** Others who use the table. */
function surroundingFindings({ table, surroundings }: MigrationFacts, definition: MigrationDefinition): readonly Finding[] {
  const moved = new Set(definition.kind === 'move' ? definition.columns : []);
  const reading = surroundings.readers.filter(({ columns }) => definition.kind !== 'move' || overlaps(columns, moved));
  const rowBytes = table.rows > 0 ? (table.bytes + table.toastBytes) / table.rows : 0;
  return [
    ...reading.map((reader) =>
      blocker('live_reader', '0A000', `${reader.name} reads ${definition.kind === 'move' ? 'a moved column' : 'the table'}`, {
        detail: 'What Millrace keeps up to date from this table does not follow it to its new shape.',
        hint: 'Drop it, and create it again when the migration is finished.',
      }),
    ),
    ...table.publications.map(({ name, allTables }) =>
      warning('published', `publication "${name}" contains the table`, {
        detail: allTables
          ? 'It is FOR ALL TABLES: subscribers also get the rows of the new table, before the cutover too.'
          : definition.kind === 'move'
            ? 'It keeps the table, under the name that this has until FINALIZE. The new table is for you to add.'
            : 'The table that has its place after the cutover is put into it then; subscribers need the new shape by that time.',
      }),
    ),
    ...found(
      table.triggers.some(({ enabled }) => enabled),
      () =>
        info('triggers', `triggers: ${table.triggers.map(({ name }) => name).join(', ')}`, {
          detail: `What Millrace itself writes does not fire them.${definition.kind === 'move' ? '' : ' They are created again on the new table, and fire there from the cutover on.'}`,
        }),
    ),
    ...found(table.bytes + table.toastBytes > 10 * 2 ** 30, () =>
      info('large_table', 'the table is large: copying takes long, and the WAL of all that time is kept if Millrace stands still'),
    ),
    ...found(rowBytes > 4096, () =>
      info('wide_rows', `rows are wide: about ${Math.round(rowBytes)} bytes each`, {
        detail: 'CHUNK counts the bytes of the source, so few rows are copied at a time.',
      }),
    ),
    info('on_conflict', 'INSERT .. ON CONFLICT does not work on what is a view at the moment', {
      detail:
        'Postgres refuses it on views with INSTEAD OF triggers: of the new shape before the cutover, of the old one after it. Write INSERT and UPDATE.',
    }),
  ];
}

function transactionFindings(transactions: readonly OpenTransaction[]): readonly Finding[] {
  return transactions.map((one) => {
    const who = one.pid === null ? `prepared transaction '${one.gid}'` : `transaction of pid ${one.pid}`;
    const what = one.onTable ? 'holds a lock on the table' : 'is open';
    return warning('open_transaction', `${who} ("${one.user}") ${what} since ${shownAge(one.ageMs)}`, {
      detail: `The start waits for its end${one.onTable ? ', and so would the cutover' : ''}.${one.query === null ? '' : ` Query: ${one.query}`}`,
      hint: one.pid === null ? `COMMIT PREPARED or ROLLBACK PREPARED '${one.gid}';` : `SELECT pg_terminate_backend(${one.pid}); ends it.`,
    });
  });
}

/** An age as people say it. */
export function shownAge(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  return `${Math.round(ms / 3_600_000)} h`;
}
