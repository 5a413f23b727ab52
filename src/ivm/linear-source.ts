/**
 * FROM and WHERE of a linear query, with what is known of its relations one by one.
 * Invariant: a changed row that does not pass its narrowing is in no result, old or new, while the relations that it names do not change.
 */
import { isEquality, sidesOf } from './affected.ts';
import {
  allOf,
  columnOf,
  conjuncts,
  expressionText,
  NotRewritable,
  parseExpression,
  replace,
  resTarget,
  selectFields,
  type Tree,
} from './ast.ts';
import { fromAliases, hasSubquery, innerItems, usedAliases } from './query-parts.ts';
import { type Relations, stageText } from './stage-text.ts';
import { type Fields, list } from './tree.ts';
import type { Existence, JoinSource, Narrowing, Template } from './types.ts';
import { needed } from './unique-rows.ts';

/** FROM and WHERE of a linear SELECT. */
export function joinSource(select: Tree, relations: Relations): JoinSource {
  const from = stageText(
    { ...selectFields([], list(select['fromClause'])), targetList: [{ ResTarget: { val: { A_Const: { ival: { ival: 1 } } } } }] },
    relations,
    select,
  );
  const [first, ...rest] = from.template;
  const prefix = 'SELECT 1 FROM ';
  if (typeof first !== 'string' || !first.startsWith(prefix)) throw new NotRewritable('a FROM of unknown layout');
  return {
    from: [first.slice(prefix.length), ...rest].filter((piece) => piece !== ''),
    where: select['whereClause'] === undefined ? null : expressionText(select['whereClause']),
    occurrences: from.occurrences,
    equalities: equalities(select, from.places),
    ...narrowed(select, from.places, relations),
  };
}

/** Columns that WHERE and inner joins want to be equal. */
export function equalities(select: Fields, places: ReadonlyMap<string, number>): NonNullable<JoinSource['equalities']> {
  const joins = innerItems(list(select['fromClause']))?.conditions ?? [];
  return [select['whereClause'], ...joins].flatMap(conjuncts).flatMap((condition) => {
    const [left, right] = (isEquality(condition) ? sidesOf(condition) : null)?.map(columnOf) ?? [];
    const [from, to] = [places.get(left?.alias ?? ''), places.get(right?.alias ?? '')];
    if (!left || !right || from === undefined || to === undefined || from === to) return [];
    return [
      [
        { relation: from, column: left.column },
        { relation: to, column: right.column },
      ] as const,
    ];
  });
}

/** For each relation of inner joins, what its rows have to be and to find in order to be in the result; and the other conditions. */
function narrowed(
  select: Tree,
  places: ReadonlyMap<string, number>,
  relations: Relations,
): Pick<JoinSource, 'narrowings' | 'conditions' | 'sparable'> {
  const from = innerItems(list(select['fromClause']));
  if (from === null) return {};
  const where = conjuncts(select['whereClause']);
  const all = [...where, ...from.conditions.flatMap(conjuncts)];
  const narrowings = [...places].map(([alias, relation]): Narrowing => {
    return {
      relation,
      alias,
      where: textOf(all.filter((condition) => aliasOf(condition) === alias)),
      needs: needed(select, new Set([alias]), (number) => relations(false, number)).map((found) => ({
        ...existence(found, select, relations),
        relations: list(found['fromClause']).flatMap((item) => fromAliases(item).flatMap((name) => places.get(name) ?? [])),
      })),
    };
  });
  const conditions = where.map((condition) => ({
    text: expressionText(condition),
    relations: [...usedAliases(condition)].map((alias) => places.get(alias) ?? -1),
  }));
  const { fromClause: _, whereClause: __, ...shown } = select;
  const mentioned = usedAliases(shown);
  const sparable = from.conditions.length > 0 ? [] : [...places].flatMap(([alias, relation]) => (mentioned.has(alias) ? [] : [relation]));
  return { narrowings, conditions, sparable };
}

/** The relation that a condition is about, when it is one. */
function aliasOf(condition: unknown): string | null {
  const [alias, ...more] = usedAliases(condition);
  return alias === undefined || more.length > 0 || hasSubquery(condition) ? null : alias;
}

function textOf(conditions: readonly unknown[]): string | null {
  const all = allOf(conditions);
  return all === undefined ? null : expressionText(all);
}

/** EXISTS of a query as a condition to be added to another. */
export function existence(found: Tree, mentioned: unknown, relations: Relations): Existence {
  const { template, occurrences } = stageText(selectFields([resTarget('x1', existing(found))], []), relations, mentioned);
  return { condition: conditionOf(template), occurrences };
}

export function existing(select: Tree): unknown {
  return replace(parseExpression('EXISTS (SELECT 1)'), (kind, fields) =>
    kind === 'SubLink' ? { SubLink: { ...fields, subselect: { SelectStmt: select } } } : undefined,
  );
}

/** The text of `SELECT <condition> AS x1` without what is around the condition. */
function conditionOf(template: Template): Template {
  const [before, after] = ['SELECT ', ' AS x1'];
  const last = template.length - 1;
  return template.map((piece, i) => {
    if (typeof piece !== 'string') return piece;
    if ((i === 0 && !piece.startsWith(before)) || (i === last && !piece.endsWith(after)))
      throw new NotRewritable('a condition of unknown layout');
    return piece.slice(i === 0 ? before.length : 0, i === last ? -after.length : undefined);
  });
}
