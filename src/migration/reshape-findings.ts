/** ALTER TABLE .. TYPE and SPLIT COLUMN: what of the table stands in the way of another table taking its place. Pure. */
import { quoteIdentifier } from '../sql/quote.ts';
import { type Dependent, type MigrationFacts, type TableFacts, tableName, type WithColumns } from './facts.ts';
import { blocker, type Finding, found, info, overlaps, repeated, warning } from './finding.ts';
import type { AlterDefinition, SplitDefinition } from './model.ts';

export function reshapeFindings({ table }: MigrationFacts, definition: AlterDefinition | SplitDefinition): readonly Finding[] {
  const changed = definition.kind === 'split' ? [definition.column] : definition.columns.map(({ column }) => column);
  return [
    ...columnFindings(table, changed),
    ...(definition.kind === 'split' ? splitFindings(table, definition) : followers(table, new Set(changed))),
    ...objectFindings(table, new Set(changed)),
  ];
}

function columnFindings(table: TableFacts, changed: readonly string[]): readonly Finding[] {
  const { columns } = table.source;
  return [
    ...changed.flatMap((column): readonly Finding[] => {
      const known = columns.find(({ name }) => name === column);
      if (known === undefined) {
        return [
          blocker('unknown_column', '42703', `column "${column}" of table ${tableName(table)} does not exist`, {
            detail: `Its columns are: ${columns.map(({ name }) => name).join(', ')}.`,
          }),
        ];
      }
      return found(known.generated !== null, () => blocker('generated_column', '0A000', `column "${column}" is a generated column`));
    }),
    ...repeated(changed).map((column) => blocker('duplicate_column', '42701', `column "${column}" is named twice`)),
  ];
}

function splitFindings(table: TableFacts, { column, into }: SplitDefinition): readonly Finding[] {
  const { source } = table;
  const goes = ({ columns }: WithColumns): boolean => columns.includes(column);
  const staying = source.columns.map(({ name }) => name).filter((name) => name !== column);
  const clashing = repeated([...staying, ...into.map(({ name }) => name)]);
  const vanishing = (code: string, kind: string, name: string, hint: string): Finding =>
    blocker(code, '2BP01', `${kind} "${name}" uses column "${column}", which the new shape has not`, { hint });
  const drop = (name: string): string => `ALTER TABLE ${tableName(table)} DROP CONSTRAINT ${quoteIdentifier(name)};`;
  const known = source.columns.find(({ name }) => name === column);
  return [
    ...clashing.map((name) => blocker('duplicate_column', '42701', `column "${name}" would be there twice`)),
    ...found(source.key.includes(column), () => blocker('key_column', '42P16', `column "${column}" is in the primary key`)),
    ...found(known !== undefined && known.identity !== null, () =>
      blocker('identity_column', '0A000', `column "${column}" is an identity column`),
    ),
    ...table.foreignKeysOut.filter(goes).map(({ name }) => vanishing('foreign_key', 'foreign key', name, drop(name))),
    ...table.foreignKeysIn
      .filter(goes)
      .map((one) =>
        vanishing(
          'foreign_key',
          `foreign key of ${one.table}`,
          one.name,
          `ALTER TABLE ${one.table} DROP CONSTRAINT ${quoteIdentifier(one.name)};`,
        ),
      ),
    ...table.checks.filter(goes).map(({ name }) => vanishing('check', 'check constraint', name, drop(name))),
    ...table.triggers
      .filter(goes)
      .map(({ name }) => vanishing('trigger', 'trigger', name, `DROP TRIGGER ${quoteIdentifier(name)} ON ${tableName(table)};`)),
    ...table.publications
      .filter(goes)
      .map(({ name }) =>
        vanishing('publication', 'publication', name, `ALTER PUBLICATION ${quoteIdentifier(name)} SET TABLE ..; without that column.`),
      ),
    ...table.indexes
      .filter((one) => !one.primary && goes(one))
      .map((one) =>
        one.unique || one.exclusion
          ? vanishing('index', 'unique index', one.name, 'Drop it: the new shape cannot hold to it.')
          : warning('index', `index "${one.name}" uses column "${column}": the new table has no such index`, {
              hint: 'Create one over the new columns after the cutover: CREATE INDEX CONCURRENTLY ..;',
            }),
      ),
    ...table.statistics
      .filter(goes)
      .map(({ name }) => warning('statistics', `extended statistics "${name}" use column "${column}": they are lost`)),
  ];
}

/** Columns of other tables that refer to one whose type changes. */
function followers(table: TableFacts, changed: ReadonlySet<string>): readonly Finding[] {
  return [
    ...table.foreignKeysIn.flatMap((one) =>
      one.columns.flatMap((column, i) =>
        changed.has(column)
          ? [
              warning(
                'referring_column',
                `${one.table}.${one.from[i]} (${one.types[i]}) refers to column "${column}", whose type changes`,
                {
                  detail: 'Values that do not fit it cannot be referred to.',
                  hint: `Change it too: CREATE MIGRATION .. ALTER TABLE ${one.table} ALTER COLUMN ${quoteIdentifier(one.from[i] ?? '')} TYPE ..;`,
                },
              ),
            ]
          : [],
      ),
    ),
    ...table.foreignKeysOut
      .filter(({ columns }) => overlaps(columns, changed))
      .map(({ name }) =>
        warning(
          'foreign_key',
          `foreign key "${name}" is over a column whose type changes: the new type must compare with what it refers to`,
        ),
      ),
  ];
}

/** Objects that hang on the table itself, and would go on with the old one. */
function objectFindings(table: TableFacts, changed: ReadonlySet<string>): readonly Finding[] {
  const name = tableName(table);
  const refused = (code: string, message: string, hint: string): Finding => blocker(code, '0A000', message, { hint });
  const uses = (one: WithColumns): string => named(one, changed);
  return [
    ...table.rules.map((rule) => refused('rule', `rule "${rule}" on table ${name}`, `DROP RULE ${quoteIdentifier(rule)} ON ${name};`)),
    ...found(table.rowSecurity || table.policies.length > 0, () =>
      refused(
        'row_security',
        `table ${name} has row-level security`,
        `ALTER TABLE ${name} DISABLE ROW LEVEL SECURITY; and drop its policies.`,
      ),
    ),
    ...table.generated
      .filter(({ columns }) => overlaps(columns, changed))
      .map((one) =>
        blocker('generated', '2BP01', `generated column "${one.name}" is made of column ${uses(one)}`, {
          hint: 'Drop it, and add it again after the cutover.',
        }),
      ),
    ...table.dependents.map((one) => dependentFinding(one, changed)),
    ...table.foreignKeysIn
      .filter(({ columns }) => !overlaps(columns, changed))
      .map((one) => info('foreign_key_in', `foreign key "${one.name}" of ${one.table} is led to the new table: NOT VALID, then validated`)),
  ];
}

const named = (one: WithColumns, changed: ReadonlySet<string>): string => one.columns.filter((column) => changed.has(column)).join(', ');

function dependentFinding(one: Dependent, changed: ReadonlySet<string>): Finding {
  const refused = (message: string, hint: string, detail = 'It would go on with the old table.'): Finding =>
    blocker('dependent', '0A000', message, { detail, hint });
  const again = 'Drop it, and create it again after the cutover.';
  switch (one.kind) {
    case 'materialized view':
      return refused(`materialized view ${one.name} is over the table`, again);
    case 'function':
      return refused(`function ${one.name} has a body that Postgres ties to the table`, 'Give it a body that is a string: AS $$ .. $$.');
    case 'other':
      return refused(`${one.name} depends on the table`, again);
    case 'view':
      return overlaps(one.columns, changed)
        ? refused(`view ${one.name} uses column ${named(one, changed)}`, again, 'Its columns could change with it.')
        : info('view', `view ${one.name} is made anew over the new table at the cutover`);
  }
}
