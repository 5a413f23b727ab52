/**
 * Queries for the keys that changes touch.
 * Invariant: every key whose rows can differ is found by one of them; that more are found costs time only.
 */

import { isEquality, isInequality, type TouchPath, touchPaths } from './affected.ts';
import { allOf, columnOf, columnRef, parseExpression, replace, resTarget, selectFields, type Tree } from './ast.ts';
import { existence, existing } from './linear-source.ts';
import type { TouchQuery } from './plans.ts';
import { eachOwnNode, fromAliases, usedAliases } from './query-parts.ts';
import { keyName } from './relation-sql.ts';
import { placesOf, type Relations, stageText } from './stage-text.ts';
import { at } from './tree.ts';
import type { LiveRelation } from './types.ts';
import { needed } from './unique-rows.ts';

/** How changes reach the keys of `anchor`, one query for each way. */
export function touchQueries(
  select: Tree,
  anchor: string,
  key: readonly unknown[] | null,
  relations: Relations,
  live: readonly LiveRelation[],
): TouchQuery[] {
  // What the query looks at decides which changes matter, also where the path does not mention it.
  return touchPaths(select, anchor, live).map((path) => {
    const exists =
      path.gate === null ? null : selectFields([resTarget('x1', parseExpression('1'))], [itemOf(select, path.trigger)], allOf(path.gate));
    const gate = exists === null ? [] : [existing(exists)];
    const { items, where } = distinctTrigger(path);
    // TRUE, so that there is a condition to add others to.
    const bare: Tree = selectFields([], items, allOf([...where, ...gate, parseExpression('true')]));
    const places = placesOf(bare);
    const place = places.get(anchor) ?? 0;
    const own = relationKey(select, anchor, relations).map((_, i) => columnRef(anchor, keyName(place, i).slice(1, -1)));
    const values = key ?? own;
    const text = stageText({ ...bare, targetList: values.map((value, i) => resTarget(`k${i + 1}`, value)) }, relations, select);
    return {
      query: text.template,
      occurrences: text.occurrences,
      trigger: places.get(path.trigger) ?? 0,
      keysOf: key === null ? [place] : [],
      needs: needed(select, new Set(path.items.flatMap(fromAliases)), (number) => live[number]).map((found) =>
        existence(found, select, relations),
      ),
    };
  });
}

/**
 * Many changed rows may lead to the same keys: each of the values by which they do is looked up once. That a value differs, which nearly
 * all do, is not asked: more keys are found than by it.
 */
function distinctTrigger({ trigger, items, where }: TouchPath): { readonly items: readonly Tree[]; readonly where: readonly unknown[] } {
  const [item, ...others] = items;
  const of = (condition: unknown): ReadonlySet<string> => usedAliases(condition);
  const joins = where.filter((condition) => of(condition).has(trigger) && of(condition).size > 1);
  const kept = joins.filter((condition) => !isInequality(condition));
  if (item === undefined || others.length === 0 || !kept.some(isEquality)) return { items, where };
  const columns = new Set<string>();
  eachOwnNode(kept, (kind, fields) => {
    const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
    if (column?.alias === trigger) columns.add(column.column);
    return undefined;
  });
  const isOwn = (condition: unknown): boolean => of(condition).size === 1 && of(condition).has(trigger);
  const targets = [...columns].map((column) => resTarget(column, columnRef(trigger, column)));
  const own = allOf(where.filter(isOwn));
  const once: Tree = { ...selectFields(targets, [item], own === undefined ? own : unestimated(own)), distinctClause: [{}] };
  const alias = { aliasname: trigger };
  return {
    items: [{ RangeSubselect: { subquery: { SelectStmt: once }, alias } }, ...others],
    where: where.filter((condition) => !isOwn(condition) && (!joins.includes(condition) || kept.includes(condition))),
  };
}

/** Without statistics the planner takes what passes a range or an equality for nearly nothing; of this it takes half. */
function unestimated(condition: unknown): unknown {
  return replace(parseExpression('CASE WHEN x.y THEN true END'), (kind) => (kind === 'ColumnRef' ? condition : undefined));
}

function itemOf(select: Tree, alias: string): unknown {
  let found: unknown;
  replace(select, (kind, fields, whole) => {
    if (kind === 'RangeVar' && at(fields, 'alias')?.['aliasname'] === alias) found = whole;
    return undefined;
  });
  return found;
}

function relationKey(select: Tree, alias: string, relations: Relations): readonly string[] {
  const text = stageText(select, relations);
  return text.occurrences[text.places.get(alias) ?? -1]?.key ?? [];
}
