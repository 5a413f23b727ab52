/**
 * Plans of queries whose touched keys are computed again.
 * Invariant: every key whose rows can differ is found by one of the touch queries; that more are found costs time only.
 */

import { isEquality, isInequality, type TouchPath, touchPaths } from './affected.ts';
import {
  allOf,
  columnOf,
  columnRef,
  equal,
  expressionText,
  meaningOf,
  NotRewritable,
  parseExpression,
  replace,
  resTarget,
  selectFields,
  type Tree,
} from './ast.ts';
import { existence, existing, joinSource } from './linear-source.ts';
import type { KeyedPlan, StagePlan, TouchQuery } from './plans.ts';
import { eachOwnNode, fromAliases, usedAliases } from './query-parts.ts';
import { keyName } from './relation-sql.ts';
import type { Stage } from './stage.ts';
import { placesOf, type Relations, stageText } from './stage-text.ts';
import { at, kindOf, list, node } from './tree.ts';
import type { LiveRelation } from './types.ts';
import { needed } from './unique-rows.ts';

/** Plan of a keyed stage, over relations whose keys are known. */
export function keyedPlan(
  stage: Stage,
  relations: Relations,
  live: readonly LiveRelation[],
): Omit<StagePlan, 'key' | 'reason'> & { readonly body: KeyedPlan } {
  const { way, select } = stage;
  if (way.kind !== 'keyed') throw new RangeError('not a keyed stage');
  const places = placesOf(select);
  const anchor = way.anchor !== null && way.key === null ? (places.get(way.anchor) ?? null) : null;
  const own = (relation: number, alias: string): unknown[] => {
    const key = stageText(select, relations).occurrences[anchor ?? -1]?.key ?? [];
    return key.map((_, i) => columnRef(alias, keyName(relation, i).slice(1, -1)));
  };
  const keys = way.key ?? own(anchor ?? 0, way.anchor ?? '');
  if (keys.length === 0) throw new NotRewritable('a relation without a key');
  const targets = list(select['targetList']);
  const shown = targets.map((entry) => meaningOf(at(entry, 'ResTarget')?.['val']));
  const hidden: Tree[] = [];
  const key = keys.map((value, i) => {
    const place = anchor === null ? shown.indexOf(meaningOf(value)) : -1;
    if (place >= 0) return `c${place + 1}`;
    hidden.push(resTarget(`k${i + 1}`, value));
    return `k${i + 1}`;
  });
  const columns = [...targets.map((_, i) => `c${i + 1}`), ...hidden.map((entry) => String(at(entry, 'ResTarget')?.['name']))];
  const named = [...targets.map((entry, i) => resTarget(`c${i + 1}`, at(entry, 'ResTarget')?.['val'])), ...hidden];
  const all: Tree = { ...select, targetList: named };
  const touched = { RangeVar: { relname: 'mr$touched', inh: true, relpersistence: 'p', alias: { aliasname: 'mr$t' } } };
  const restricted = (conditions: readonly unknown[]): Tree => ({
    ...all,
    fromClause: [...list(select['fromClause']), touched],
    whereClause: allOf([select['whereClause'], ...conditions].filter((condition) => condition !== undefined)),
  });
  const given = keys.map((_, i) => columnRef('mr$t', `k${i + 1}`));
  const someNull = (values: readonly unknown[]): unknown => {
    const tests = values.map((arg) => ({ NullTest: { ...node(kindOf(parseExpression('x IS NULL')).fields), arg } }));
    return tests.length === 1 ? tests[0] : { BoolExpr: { boolop: 'OR_EXPR', args: tests } };
  };
  const alike = keys.map((value, i) =>
    replace(parseExpression('l.x IS NOT DISTINCT FROM r.x'), (kind, fields) =>
      kind === 'ColumnRef' ? (columnOf({ ColumnRef: fields })?.alias === 'l' ? value : given[i]) : undefined,
    ),
  );
  const text = stageText(all, relations);
  const touch: KeyedPlan['touch'] =
    way.anchor === null
      ? { kind: 'terms', source: joinSource(select, relations), keys: keys.map(expressionText) }
      : { kind: 'paths', paths: touchQueries(select, way.anchor, way.key, relations, live) };
  return {
    columns: targets.map((_, i) => ({ name: stage.columns[i] ?? '', expression: `s.c${i + 1}` })),
    body: {
      kind: 'keyed',
      queries: {
        all: text.template,
        touched: stageText(restricted(keys.map((value, i) => equal(value, given[i]))), relations).template,
        touchedNull: stageText(restricted([someNull(keys), someNull(given), ...alike]), relations).template,
      },
      occurrences: text.occurrences,
      anchor,
      columns,
      key,
      nullable: way.key !== null,
      touch,
    },
  };
}

function touchQueries(
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
