/**
 * A migration as typed, with everything that was found out about it.
 * Invariant: nothing is changed and nothing stays locked; types and expressions come out as Postgres prints them with only pg_catalog on search_path,
 * so that they mean to the engine what they mean to the caller.
 */
import { millraceError } from '../errors.ts';
import type { Examined, Probe } from '../migration/examined.ts';
import { type Ask, type MigrationFacts, readFacts } from '../migration/facts.ts';
import type { AlterDefinition, MigrationDefinition, SplitDefinition, TableName } from '../migration/model.ts';
import { type Probed, probeExpression, type RunAsCaller, tryRoundTrip } from '../migration/probes.ts';
import type { CreateMigration, MigrationChange } from '../sql/ast.ts';
import { loadPostgresParser } from '../sql/postgres-parser.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { type CallerRole, firstRow, perform, type StatementContext } from './context.ts';
import { givenMigrationOptions, withDefaults } from './migration-options.ts';
import { quotedName, shownName } from './names.ts';

/** Asks as the owner of the catalog, who sees all of it. */
const asOwner =
  (context: StatementContext, session: CallerSession): Ask =>
  (sql, parameters) =>
    perform(context, session, [sql], parameters);

/** Asks as the caller, with the same search_path, where there is no catalog. */
const asCaller =
  (session: CallerSession): Ask =>
  async (sql, parameters) => {
    const before = (await firstRow(session, "SELECT pg_catalog.current_setting('search_path')"))?.[0] ?? '';
    const set = "SELECT pg_catalog.set_config('search_path', $1, true)";
    await firstRow(session, set, ['pg_catalog, pg_temp']);
    const row = await firstRow(session, sql.replaceAll('$1', '$1::jsonb'), [JSON.stringify(parameters)]);
    await firstRow(session, set, [before]);
    return JSON.parse(row?.[0] ?? 'null');
  };

/** `hasCatalog`: Millrace's catalog is there. `mayTry`: the transaction may make a temporary table, on which expressions are tried. */
export async function examine(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  statement: CreateMigration,
  { hasCatalog, mayTry }: { readonly hasCatalog: boolean; readonly mayTry: boolean },
): Promise<Examined> {
  const { change, name } = statement;
  const options = withDefaults(name.name, await givenMigrationOptions(session, statement.options));
  const oid = (await firstRow(session, 'SELECT pg_catalog.to_regclass($1)::oid', [quotedName(change.table)]))?.[0] ?? null;
  if (oid === null) throw millraceError('undefined_relation', { name: shownName(change.table) }, { position: change.table.at + 1 });
  const target = change.kind === 'move' ? await targetName(session, change) : null;
  const own = hasCatalog ? asOwner(context, session) : null;
  const facts = await readFacts(own ?? asCaller(session), own, {
    oid,
    caller: role.oid,
    engine: context.upstream.user,
    target,
    versions: [options.newVersion, options.oldVersion],
  });
  const typed = definitionOf(change, target);
  const isTable = facts.table.kind === 'r' || facts.table.kind === 'p';
  if (typed.kind === 'move' || !isTable || !mayTry)
    return { name: name.name, facts, definition: typed, options, probes: [], roundTrip: null };
  return { name: name.name, facts, options, ...(await tried(session, facts, typed)) };
}

async function targetName(session: CallerSession, { target }: Extract<MigrationChange, { kind: 'move' }>): Promise<TableName> {
  const schema = target.schema ?? (await firstRow(session, 'SELECT pg_catalog.current_schema()'))?.[0] ?? null;
  if (schema === null) throw millraceError('no_schema_selected', {}, { position: target.at + 1 });
  return { schema, name: target.name };
}

function definitionOf(change: MigrationChange, target: TableName | null): MigrationDefinition {
  switch (change.kind) {
    case 'move':
      return {
        kind: 'move',
        columns: change.columns.map(({ name }) => name),
        target: target ?? { schema: '', name: change.target.name },
        key: change.key.map(({ column, as }) => ({ column: column.name, as: as.name })),
      };
    case 'alter':
      return {
        kind: 'alter',
        columns: change.columns.map(({ column, type, up, down }) => ({
          column: column.name,
          type: type.text,
          up: up?.text ?? null,
          down: down?.text ?? null,
        })),
      };
    case 'split':
      return {
        kind: 'split',
        column: change.column.name,
        into: change.into.map(({ name, type, up }) => ({ name: name.name, type: type.text, up: up.text })),
        down: change.down.text,
      };
  }
}

/** Tries types and expressions: what is wrong with them, and the definition in Postgres's own words where nothing is. */
async function tried(
  session: CallerSession,
  facts: MigrationFacts,
  definition: AlterDefinition | SplitDefinition,
): Promise<Pick<Examined, 'definition' | 'probes' | 'roundTrip'>> {
  await loadPostgresParser();
  const run: RunAsCaller = async (sql) => (await session.query(sql, [], { quiet: true })).rows;
  const { columns } = facts.table.source;
  const typeOf = (name: string): string | undefined => columns.find((column) => column.name === name)?.type;
  const wanted =
    definition.kind === 'split'
      ? definition.into.map(({ name, type, up }) => ({ column: name, type, expression: up, given: true }))
      : definition.columns
          .filter(({ column }) => typeOf(column) !== undefined)
          .map(({ column, type, up }) => ({ column, type, expression: up ?? quoteIdentifier(column), given: up !== null }));
  const probes: Probe[] = [];
  const types = new Map<string, string>();
  for (const { column, type, expression, given } of wanted) {
    const result = await probeExpression(run, columns, type, expression);
    if ('value' in result) types.set(column, result.value.type);
    probes.push({ column, direction: 'up', given, type, result });
  }
  if (types.size < wanted.length) return { definition, probes, roundTrip: null };
  const after =
    definition.kind === 'split'
      ? [
          ...columns.filter(({ name }) => name !== definition.column),
          ...definition.into.map(({ name }) => ({ name, type: types.get(name) ?? 'text' })),
        ]
      : columns.map(({ name, type }) => ({ name, type: types.get(name) ?? type }));
  if (new Set(after.map(({ name }) => name)).size < after.length) return { definition, probes, roundTrip: null };
  const back =
    definition.kind === 'split'
      ? [{ column: definition.column, expression: definition.down, given: true }]
      : definition.columns.map(({ column, down }) => ({ column, expression: down ?? quoteIdentifier(column), given: down !== null }));
  for (const { column, expression, given } of back) {
    const type = typeOf(column);
    if (type === undefined) continue;
    probes.push({ column, direction: 'down', given, type, result: await probeExpression(run, after, type, expression) });
  }
  const spelled = spell(definition, probes);
  const isSound = probes.every(({ result }) => 'value' in result);
  const isReadable = facts.surroundings.caller.owns;
  return {
    definition: spelled,
    probes,
    roundTrip: isSound && isReadable ? await tryRoundTrip(run, facts.table.source, spelled, facts.table.rows) : null,
  };
}

/** The same with types and expressions as Postgres has printed them. */
function spell<T extends AlterDefinition | SplitDefinition>(definition: T, probes: readonly Probe[]): T;
function spell(definition: AlterDefinition | SplitDefinition, probes: readonly Probe[]): AlterDefinition | SplitDefinition {
  const find = (column: string, direction: Probe['direction']): Extract<Probed, { value: unknown }>['value'] | null => {
    const result = probes.find((probe) => probe.column === column && probe.direction === direction)?.result;
    return result !== undefined && 'value' in result ? result.value : null;
  };
  if (definition.kind === 'split') {
    return {
      ...definition,
      into: definition.into.map(({ name, type, up }) => ({ name, type: find(name, 'up')?.type ?? type, up: find(name, 'up')?.text ?? up })),
      down: find(definition.column, 'down')?.text ?? definition.down,
    };
  }
  return {
    ...definition,
    columns: definition.columns.map(({ column, type, up, down }) => ({
      column,
      type: find(column, 'up')?.type ?? type,
      up: up === null ? null : (find(column, 'up')?.text ?? up),
      down: down === null ? null : (find(column, 'down')?.text ?? down),
    })),
  };
}
