/**
 * Trees of stages as templates with places for relations.
 * Invariant: the relations of a template are numbered in the order of its text, and each knows which of its columns the query mentions.
 */
import { columnOf, NotRewritable, replace, selectText, type Tree } from './ast.ts';
import { eachNode, relationOf } from './query-parts.ts';
import { tokensOf } from './source-text.ts';
import { isFields } from './tree.ts';
import type { LiveRelation, Occurrence, Template, TemplatePiece } from './types.ts';

/** What a number of a live relation or a stage stands for. */
export type Relations = (stage: boolean, number: number) => LiveRelation;

export interface StageText {
  readonly template: Template;
  readonly occurrences: readonly Occurrence[];
  /** Numbers of occurrences by alias. */
  readonly places: ReadonlyMap<string, number>;
}

const placeSchema = 'mr$rel';

/** Numbers that relations will have in the template, by alias. */
export function placesOf(select: Tree): ReadonlyMap<string, number> {
  const places = new Map<string, number>();
  let count = 0;
  eachNode(select, (kind, fields) => {
    const found = kind === 'RangeVar' ? relationOf({ RangeVar: fields }) : null;
    if (found !== null) places.set(found.alias, count++);
    return undefined;
  });
  return places;
}

/** The SELECT as a template. `mentioned`: where else its relations' columns are used. Recursive queries keep all columns. */
export function stageText(select: Tree, relations: Relations, mentioned: unknown = null): StageText {
  const occurrences: { relation: LiveRelation; alias: string }[] = [];
  const places = new Map<string, number>();
  const numbered = replace(select, (kind, fields) => {
    const found = kind === 'RangeVar' ? relationOf({ RangeVar: fields }) : null;
    if (found === null) return undefined;
    places.set(found.alias, occurrences.length);
    occurrences.push({ relation: relations(found.stage, found.number), alias: found.alias });
    return { RangeVar: { ...fields, schemaname: placeSchema, relname: String(occurrences.length - 1) } };
  }) as Tree;
  const text = selectText(numbered);
  const used = new Map<string, Set<string>>();
  eachNode([select, mentioned], (kind, fields) => {
    const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
    if (column === null) return undefined;
    used.set(column.alias, (used.get(column.alias) ?? new Set()).add(column.column));
    return undefined;
  });
  const raw = hasRaw(select);
  return {
    template: cut(text, occurrences.length),
    places,
    occurrences: occurrences.map(({ relation, alias }): Occurrence => {
      const names = relation.columns.map((column) => column.name).filter((name) => used.get(alias)?.has(name) === true);
      return { input: relation.id, key: relation.key, columns: relation.columns, used: raw ? null : names };
    }),
  };
}

function hasRaw(select: Tree): boolean {
  let found = select['withClause'] !== undefined;
  eachNode(select, (_, fields) => {
    if (isFields(fields['withClause'])) found = true;
    return undefined;
  });
  return found;
}

/** The text cut where relations stand: `mr$rel`.`<number>`. */
function cut(text: string, count: number): Template {
  const tokens = tokensOf(text);
  const pieces: TemplatePiece[] = [];
  let done = 0;
  let found = 0;
  for (const [i, token] of tokens.entries()) {
    if (token.text.replaceAll('"', '') !== placeSchema || tokens[i + 1]?.text !== '.') continue;
    const number = tokens[i + 2];
    if (number === undefined) break;
    pieces.push(text.slice(done, token.start), { relation: Number(number.text.replaceAll('"', '')) });
    done = number.end;
    found += 1;
  }
  if (found !== count) throw new NotRewritable('relations of unknown layout');
  pieces.push(text.slice(done));
  return pieces.filter((piece) => piece !== '');
}
