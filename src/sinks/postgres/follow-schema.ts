/**
 * The target table follows the columns of what is delivered to it. Pure.
 * Invariant: columns are told apart by identity, not by name: where it is known, a column that has another name now is renamed, one that is gone is
 * dropped, a new one added; a name that is used again for another column is another column. Names that change places go over names of their own.
 */
import type { SinkColumn } from '../../catalog/sink-model.ts';
import { quoteIdentifier } from '../../sql/quote.ts';

/** Statements that turn a table with the columns of `before` into one with those of `now`. `typeOf`: the type a column has at the target. */
export function followColumns(
  table: string,
  before: readonly SinkColumn[],
  now: readonly SinkColumn[],
  typeOf: (column: SinkColumn) => string = ({ type }) => type,
): string[] {
  const pairs = now.map((column) => ({ column, old: counterpart(column, before, now) }));
  const kept = new Set(pairs.flatMap(({ old }) => (old === undefined ? [] : [old])));
  const alter = (action: string): string => `ALTER TABLE ${table} ${action}`;
  const drops = before.filter((column) => !kept.has(column)).map(({ name }) => alter(`DROP COLUMN ${quoteIdentifier(name)}`));
  const renamed = pairs.flatMap(({ column, old }) => (old === undefined || old.name === column.name ? [] : [{ column, old }]));
  const taken = new Set([...kept].map(({ name }) => name));
  // Out of the way first where another column still has the name.
  const detours = renamed.filter(({ column }) => taken.has(column.name));
  const aside = (index: number): string => quoteIdentifier(`millrace_renaming_${index}`);
  const renames = [
    ...detours.map(({ old }, index) => alter(`RENAME COLUMN ${quoteIdentifier(old.name)} TO ${aside(index)}`)),
    ...renamed
      .filter((rename) => !detours.includes(rename))
      .map(({ column, old }) => alter(`RENAME COLUMN ${quoteIdentifier(old.name)} TO ${quoteIdentifier(column.name)}`)),
    ...detours.map(({ column }, index) => alter(`RENAME COLUMN ${aside(index)} TO ${quoteIdentifier(column.name)}`)),
  ];
  const types = pairs.flatMap(({ column, old }) => {
    if (old === undefined || old.type === column.type) return [];
    const name = quoteIdentifier(column.name);
    return [alter(`ALTER COLUMN ${name} TYPE ${typeOf(column)} USING ${name}::text::${typeOf(column)}`)];
  });
  const adds = pairs.flatMap(({ column, old }) =>
    old === undefined ? [alter(`ADD COLUMN ${quoteIdentifier(column.name)} ${typeOf(column)}`)] : [],
  );
  return [...drops, ...renames, ...types, ...adds];
}

/** The same column before: by identity, or by name where either has none. */
function counterpart(column: SinkColumn, before: readonly SinkColumn[], now: readonly SinkColumn[]): SinkColumn | undefined {
  const { identity } = column;
  if (identity !== null) {
    const same = before.find((old) => old.identity === identity);
    if (same !== undefined) return same;
  }
  return before.find((old) => {
    if (old.name !== column.name) return false;
    if (identity === null || old.identity === null) return true;
    // Another origin table altogether: names are all there is to go by.
    return !now.some((other) => other.identity === old.identity) && originOf(identity) !== originOf(old.identity);
  });
}

const originOf = (identity: string): string => identity.slice(0, identity.indexOf(':'));
