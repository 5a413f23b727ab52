/** MOVE COLUMNS: what of the table stands in the way of columns that leave it. Pure. */
import { quoteIdentifier } from '../sql/quote.ts';
import { type MigrationFacts, type TableFacts, tableName, type WithColumns } from './facts.ts';
import { blocker, type Finding, found, info, overlaps, repeated, warning } from './finding.ts';
import type { MoveDefinition } from './model.ts';

export function moveFindings({ table }: MigrationFacts, definition: MoveDefinition): readonly Finding[] {
  const moved = new Set(definition.columns);
  return [...columnFindings(table, definition), ...keyFindings(table, definition), ...userFindings(table, definition, moved)];
}

function columnFindings(table: TableFacts, { columns, key }: MoveDefinition): readonly Finding[] {
  const { source } = table;
  const name = tableName(table);
  const named = [...columns, ...key.map(({ as }) => as)];
  return [
    ...columns.flatMap((column): readonly Finding[] => {
      const known = source.columns.find((one) => one.name === column);
      if (known === undefined) {
        return [
          blocker('unknown_column', '42703', `column "${column}" of table ${name} does not exist`, {
            detail: `Its columns are: ${source.columns.map((one) => one.name).join(', ')}.`,
          }),
        ];
      }
      const identity = known.identity === null ? [] : [blocker('identity_column', '0A000', `column "${column}" is an identity column`)];
      if (source.key.includes(column)) {
        return [
          blocker('key_column', '42P16', `column "${column}" is in the primary key`, {
            detail: 'The key is in both tables: KEY names it.',
          }),
        ];
      }
      return [
        ...found(known.notNull, () =>
          blocker('not_null', '42P16', `column "${column}" is NOT NULL`, {
            detail: 'ABSENT WHEN NULL: a row of the target is not there while all moved columns are null, so they must be able to be.',
            hint: `ALTER TABLE ${name} ALTER COLUMN ${quoteIdentifier(column)} DROP NOT NULL;`,
          }),
        ),
        ...found(known.generated !== null, () => blocker('generated_column', '0A000', `column "${column}" is a generated column`)),
        ...identity,
      ];
    }),
    ...repeated(named).map((column) => blocker('duplicate_column', '42701', `column "${column}" of the target is named twice`)),
  ];
}

function keyFindings({ source }: TableFacts, { key }: MoveDefinition): readonly Finding[] {
  const given = key.map(({ column }) => column);
  const isKey = given.length === source.key.length && source.key.every((column) => given.includes(column));
  return found(source.key.length > 0 && !isKey, () =>
    blocker('key_differs', '42P10', 'KEY does not name the columns of the primary key', {
      detail: `They are: ${source.key.join(', ')}.`,
      hint: `KEY (${source.key.map(quoteIdentifier).join(', ')})`,
    }),
  );
}

/** What uses moved columns. */
function userFindings(table: TableFacts, definition: MoveDefinition, moved: ReadonlySet<string>): readonly Finding[] {
  const goes = ({ columns }: WithColumns): boolean => overlaps(columns, moved);
  const may = new Set([...moved, ...table.source.key]);
  /** It needs columns of both tables. */
  const isTorn = (one: WithColumns): boolean => goes(one) && one.columns.some((column) => !may.has(column));
  const torn = (code: string, kind: string, one: WithColumns, hint?: string): Finding =>
    blocker(code, '2BP01', `${kind} "${one.name}" spans moved columns and columns that stay`, {
      detail: `It is over ${one.columns.join(', ')}.`,
      ...(hint === undefined ? {} : { hint }),
    });
  const uses = (code: string, kind: string, one: WithColumns, hint: string): Finding =>
    blocker(code, '2BP01', `${kind} "${one.name}" uses moved column ${one.columns.filter((column) => moved.has(column)).join(', ')}`, {
      hint,
    });
  const name = tableName(table);
  return [
    ...table.foreignKeysOut
      .filter(goes)
      .map((one) => uses('foreign_key', 'foreign key', one, `ALTER TABLE ${name} DROP CONSTRAINT ${quoteIdentifier(one.name)};`)),
    ...table.foreignKeysIn
      .filter(goes)
      .map((one) =>
        uses('foreign_key', `foreign key of ${one.table}`, one, `ALTER TABLE ${one.table} DROP CONSTRAINT ${quoteIdentifier(one.name)};`),
      ),
    ...table.indexes
      .filter((one) => !one.primary && isTorn(one))
      .map((one) =>
        torn('index', one.exclusion ? 'exclusion constraint' : 'index', one, `DROP INDEX CONCURRENTLY, or leave its columns together.`),
      ),
    ...table.checks
      .filter(isTorn)
      .map((one) => torn('check', 'check constraint', one, `ALTER TABLE ${name} DROP CONSTRAINT ${quoteIdentifier(one.name)};`)),
    ...table.generated.filter(goes).map((one) => uses('generated', 'generated column', one, 'Drop it, or turn it into a plain column.')),
    ...table.triggers
      .filter(goes)
      .map((one) => uses('trigger', 'trigger', one, 'Drop it, or leave the column out of its list and its WHEN.')),
    ...table.policies.filter(goes).map((one) => uses('policy', 'policy', one, `DROP POLICY ${quoteIdentifier(one.name)} ON ${name};`)),
    ...found(table.rowSecurity, () =>
      blocker('row_security', '0A000', `table ${name} has row-level security`, {
        detail: 'Its policies would not guard the moved columns in their new table.',
        hint: `ALTER TABLE ${name} DISABLE ROW LEVEL SECURITY;`,
      }),
    ),
    ...table.rules.map((rule) =>
      blocker('rule', '0A000', `rule "${rule}" on table ${name}`, { hint: `DROP RULE ${quoteIdentifier(rule)} ON ${name};` }),
    ),
    ...table.dependents
      .filter(goes)
      .map((one) =>
        uses('dependent', one.kind === 'other' ? 'object' : one.kind, one, 'Drop it, and create it over the new table after the cutover.'),
      ),
    ...table.statistics
      .filter(isTorn)
      .map((one) => warning('statistics', `extended statistics "${one.name}" span columns of both tables: they are lost at the end`)),
    ...found(definition.columns.length > 1, () =>
      info('absent_when_null', `a row is in the target while one of ${definition.columns.join(', ')} is not null`),
    ),
  ];
}
