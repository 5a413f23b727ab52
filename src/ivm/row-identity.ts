/**
 * What tells the rows of a keyed stage apart, and whether an index can hold its key.
 * Invariant: columns that are called unique are so for every state of the inputs, and never null.
 */
import { columnOf, columnRef, resTarget, type Tree } from './ast.ts';
import { distinctOn } from './query-parts.ts';
import { keyName } from './relation-sql.ts';
import type { Stage } from './stage.ts';
import { type Relations, stageText } from './stage-text.ts';
import { at, kindOf, list } from './tree.ts';
import type { ProbeColumn } from './types.ts';

export interface RowIdentity {
  /** Relations whose own keys the query mentions. */
  readonly keysOf: readonly number[];
  /** Storage columns that identify a row; empty when none do. */
  readonly unique: readonly string[];
  /** Targets to be added for them. */
  readonly hidden: readonly Tree[];
}

/** Rows that may be equal. */
export function anyRows(anchor: number | null): RowIdentity {
  return { keysOf: anchor === null ? [] : [anchor], unique: [], hidden: [] };
}

/** The key itself when rows are the anchor's own; the keys of all relations when they are joined ones; else none. */
export function rowIdentity(stage: Stage, relations: Relations, anchor: number | null, key: readonly string[]): RowIdentity {
  const { select, way } = stage;
  const none = anyRows(anchor);
  if (way.kind !== 'keyed' || distinctOn(select) !== null) return none;
  if (anchor !== null) {
    const [only, ...more] = list(select['fromClause']);
    return kindOf(only).kind === 'RangeVar' && more.length === 0 ? { ...none, unique: key } : none;
  }
  if (way.anchor !== null) return none;
  // A window over joined rows leaves their number as it is.
  const { occurrences, places } = stageText(select, relations);
  if (occurrences.some((occurrence) => occurrence.key.length === 0)) return none;
  const shown = list(select['targetList']).map((entry) => columnOf(at(entry, 'ResTarget')?.['val']));
  const hidden: Tree[] = [];
  const unique = [...places].flatMap(([alias, relation]) => {
    const occurrence = occurrences[relation];
    return (occurrence?.key ?? []).map((name, i) => {
      const visible = occurrence?.columns.find(({ expression }) => expression === `s.${name}`)?.name;
      const place = shown.findIndex((column) => column?.alias === alias && column.column === visible);
      if (place >= 0) return `c${place + 1}`;
      const called = `u${relation + 1}_${i + 1}`;
      hidden.push(resTarget(called, columnRef(alias, keyName(relation, i).slice(1, -1))));
      return called;
    });
  });
  return { keysOf: occurrences.map((_, i) => i), unique, hidden };
}

/** An index entry is at most a third of a page. */
const widestEntry = 2000;

/** Values of these types fit into an entry of a B-tree, whatever they are. */
export function isShort(types: readonly (ProbeColumn | undefined)[]): boolean {
  return types.reduce((sum, type) => sum + (widthOf(type) ?? widestEntry), 0) < widestEntry;
}

/** Bytes that values of a type take at most in an index; null: there is no bound. */
function widthOf(column: ProbeColumn | undefined): number | null {
  const { typeOid, typeModifier } = column ?? { typeOid: 0, typeModifier: -1 };
  if (fixedTypes.has(typeOid)) return 64;
  // char(n), varchar(n): characters of up to four bytes; numeric(p, s): four digits in two bytes.
  if (typeOid === 1042 || typeOid === 1043) return typeModifier < 0 ? null : 4 * typeModifier;
  if (typeOid === 1700) return typeModifier < 0 ? null : 1024;
  return null;
}

/** Types whose values are no longer than a name: bool, char, name, integers, floats, oid, network addresses, dates and times, uuid. */
const fixedTypes: ReadonlySet<number> = new Set([
  ...[16, 18, 19, 20, 21, 23, 26, 650, 700, 701, 829, 869, 1082, 1083, 1114, 1184, 1186, 1266, 2950],
]);
