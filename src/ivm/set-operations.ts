/**
 * Set operations as counting.
 * Invariant: each row of the result comes as often as the operation says, from how often it comes in each arm:
 * UNION ALL adds, INTERSECT ALL takes the smaller, EXCEPT ALL the difference, and without ALL once or not at all.
 */

import { quoteIdentifier } from '../sql/quote.ts';
import { parseExpression, parseSelect, resTarget, stageSchema, type Tree } from './ast.ts';
import { outputNames } from './normalise.ts';
import type { Stage, StageMaker } from './stage.ts';
import { at, isFields, list } from './tree.ts';

export function setOperation(maker: StageMaker, select: Tree): Stage {
  const names = outputNames(select);
  const leaves: Tree[] = [];
  const count = countOf(select, leaves);
  const kinds = operations(select);
  if (kinds.every((kind) => kind === 'UNION ALL')) return unionStage(maker, leaves, names, false);
  const inner = names.map((_, i) => `c${i + 1}`);
  const alias = maker.alias();
  if (kinds.every((kind) => kind.startsWith('UNION')) && select['all'] !== true) {
    const stage = addUnion(maker, leaves, inner, false);
    const shown = inner.map((name, i) => `${alias}.${name} AS ${quoteIdentifier(names[i] ?? '')}`);
    const made = parseSelect(`SELECT DISTINCT ${shown.join(', ')} FROM "${stageSchema}"."${stage}" ${alias}`);
    return { select: made, columns: names, way: { kind: 'linear' } };
  }
  const stage = addUnion(maker, leaves, inner, true);
  const columns = inner.map((name) => `${alias}.${name}`).join(', ');
  const counts = leaves.map((_, i) => `count(*) FILTER (WHERE ${alias}."mr$arm" = ${i + 1}) AS n${i + 1}`);
  const grouped = inner.map((name) => `${alias}.${name} AS ${name}`).join(', ');
  const counted = maker.compile(
    parseSelect(`SELECT ${grouped}, ${counts.join(', ')} FROM "${stageSchema}"."${stage}" ${alias} GROUP BY ${columns}`),
  );
  const row = maker.alias();
  const copies = count.replaceAll('$', row);
  const shown = inner.map((name, i) => `${row}.${name} AS ${quoteIdentifier(names[i] ?? '')}`).join(', ');
  const several = kinds.some((kind) => kind.endsWith(' ALL')) ? `, generate_series(1::bigint, ${copies}) ${maker.alias()}(i)` : '';
  const made = parseSelect(`SELECT ${shown} FROM "${stageSchema}"."${counted}" ${row}${several} WHERE ${copies} > 0`);
  return { select: made, columns: names, way: { kind: 'linear' } };
}

/** Adds a stage with the rows of all arms, as c1, c2, ..; with the number of the arm if wanted. */
function addUnion(maker: StageMaker, leaves: readonly Tree[], names: readonly string[], numbered: boolean): number {
  const stage = unionStage(maker, leaves, names, numbered);
  return maker.add(stage);
}

/** All rows of all arms. */
export function unionStage(maker: StageMaker, leaves: readonly Tree[], names: readonly string[], numbered: boolean): Stage {
  const arms = leaves.map((leaf, i): Tree => {
    const linear = maker.linearRows(leaf) ?? maker.read(maker.compile(leaf)).select;
    const targets = list(linear['targetList']).map((entry, column) => resTarget(names[column] ?? '', at(entry, 'ResTarget')?.['val']));
    return { ...linear, targetList: [...targets, ...(numbered ? [resTarget('mr$arm', parseExpression(String(i + 1)))] : [])] };
  });
  const select = arms.reduce((larg, rarg) => ({ limitOption: 'LIMIT_OPTION_DEFAULT', op: 'SETOP_UNION', all: true, larg, rarg }));
  return { select, columns: numbered ? [...names, 'mr$arm'] : names, way: { kind: 'union', arms } };
}

function isLeaf(select: Tree): boolean {
  return select['op'] === 'SETOP_NONE' || select['limitCount'] !== undefined || select['limitOffset'] !== undefined;
}

function sides(select: Tree): readonly [Tree, Tree] {
  const { larg, rarg } = select;
  if (!isFields(larg) || !isFields(rarg)) throw new RangeError('a set operation has two arms');
  return [larg as Tree, rarg as Tree];
}

function operations(select: Tree): string[] {
  if (isLeaf(select)) return [];
  return [operation(select), ...sides(select).flatMap(operations)];
}

function operation(select: Tree): string {
  return `${String(select['op']).slice('SETOP_'.length)}${select['all'] === true ? ' ALL' : ''}`;
}

/** How often a row comes; `$` stands for the row of counts. */
function countOf(select: Tree, leaves: Tree[]): string {
  if (isLeaf(select)) {
    leaves.push(select);
    return `$.n${leaves.length}`;
  }
  const [left, right] = sides(select).map((side) => countOf(side, leaves));
  switch (operation(select)) {
    case 'UNION ALL':
      return `(${left} + ${right})`;
    case 'UNION':
      return `(CASE WHEN (${left} + ${right}) > 0 THEN 1 ELSE 0 END)::bigint`;
    case 'INTERSECT ALL':
      return `LEAST(${left}, ${right})`;
    case 'INTERSECT':
      return `(CASE WHEN ${left} > 0 AND ${right} > 0 THEN 1 ELSE 0 END)::bigint`;
    case 'EXCEPT ALL':
      return `GREATEST(${left} - ${right}, 0::bigint)`;
    default:
      return `(CASE WHEN ${left} > 0 AND ${right} = 0 THEN 1 ELSE 0 END)::bigint`;
  }
}
