/**
 * Groups in which something changed, and what is in them now.
 * Invariant: every group that gained or lost a row is among the keys; more may be, which costs time only.
 * Representative of a group: types whose equal values can look different (numeric without scale, float, citext, interval, ..) always come
 * this way, so that the value shown is one that the group holds now.
 */
import { gated, renderFrom } from './relation-sql.ts';
import { hashOf, sameRow, whereAll } from './sql-text.ts';
import { touchingTerms } from './terms.ts';
import type { JoinSource, TableName } from './types.ts';

export const groupName = (i: number): string => `"mr$g${i + 1}"`;
const q = '"mr$q"';

/** Query for the keys of touched groups: "mr$h" and "mr$g1", "mr$g2", .. */
export function touchedGroups(
  source: JoinSource,
  groups: readonly string[],
  changed: ReadonlySet<number>,
  delta: TableName,
  storage: TableName,
): string {
  const isChanged = source.occurrences.map((occurrence) => changed.has(occurrence.input));
  const list = groups.map((text, i) => `${text} AS ${groupName(i)}`).join(', ');
  const terms = touchingTerms(isChanged).map((term) => {
    const states = term.states.map((state) => (state === 'changes' ? 'moved' : state));
    const where = whereAll(source.where === null ? null : `(${source.where})`);
    return gated(`SELECT ${list} FROM ${renderFrom(source, { storage, delta, states })} ${where}`, source, states, delta);
  });
  const names = groups.map((_, i) => groupName(i));
  return `SELECT ${hashOf(names)} AS "mr$h", ${names.join(', ')}
  FROM (
    ${terms.join('\n    UNION ALL\n    ')}
  ) t
  GROUP BY ${names.join(', ')}`;
}

export interface PresentGroups {
  readonly source: JoinSource;
  readonly groups: readonly string[];
  /** `=` between group values is Postgres's own. */
  readonly comparable: boolean;
  readonly storage: TableName;
  /** Name of the relation with the keys, in the form of `touchedGroups`. */
  readonly keys: string;
  /** What to select, besides "mr$h" and "mr$g1", ..: */
  readonly select: string;
  readonly having: string | null;
}

/**
 * Query for the groups of `keys` that are not empty now.
 * With built-in types in two parts, so that the first can use an index or a hash join on the group columns: groups without NULL by `=`;
 * those with one by hash, which costs nothing when there are none.
 */
export function presentGroups(wanted: PresentGroups): string {
  const { source, groups, storage, keys, select, having } = wanted;
  const names = groups.map((_, i) => groupName(i));
  const from = renderFrom(source, { storage });
  const where = source.where === null ? null : `(${source.where})`;
  const list = [`${hashOf(groups)} AS "mr$h"`, ...groups.map((text, i) => `${text} AS ${groupName(i)}`), select].join(', ');
  const tail = `GROUP BY ${groups.join(', ')}${having === null ? '' : ` HAVING ${having}`}`;
  const part = (condition: string): string => `SELECT ${list} FROM ${from}, ${keys} ${q} ${whereAll(where, condition)} ${tail}`;
  const qualified = names.map((name) => `${q}.${name}`);
  const byHash = `${hashOf(groups)} = ${q}."mr$h" AND ${sameRow(groups.join(', '), qualified.join(', '))}`;
  if (!wanted.comparable) return part(byHash);
  const byValue = groups.map((text, i) => `${text} = ${qualified[i]}`).join(' AND ');
  const someNull = groups.map((text) => `${text} IS NULL`).join(' OR ');
  const keyNull = qualified.map((name) => `${name} IS NULL`).join(' OR ');
  return `${part(byValue)}\n  UNION ALL\n  ${part(`(${someNull}) AND (${keyNull}) AND ${byHash}`)}`;
}
