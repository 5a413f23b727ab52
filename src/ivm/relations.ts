/**
 * Which relations a query mentions, and the plain views among them expanded.
 * Invariant: afterwards every relation in the text is live, and each mention has one place in the template.
 */
import { millraceError } from '../errors.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { liveSchema } from './ast.ts';
import { refuseUndefined } from './refusals.ts';
import { readSource, type Source, type Span } from './source-text.ts';
import { at, type Fields, isFields, list, node, strings, walk } from './tree.ts';
import type { LiveRelation, Occurrence, RelationLookup, RelationName, Template, TemplatePiece } from './types.ts';

/** How deep plain views may lie in each other; Postgres itself forbids circles. */
const deepest = 64;

export interface Mention {
  readonly relation: LiveRelation;
  /** The name in the text; its alias, which it always has, is not part of it. */
  readonly place: Span;
  /** The alias renames columns by position. */
  readonly renames: boolean;
  readonly fields: Fields;
}

export interface ResolvedQuery {
  readonly source: Source;
  readonly mentions: readonly Mention[];
  /** Relations by the numbers that stand for them in the text. */
  readonly live: readonly LiveRelation[];
}

/** An edit of the text: what stands at `place` gives way to `piece`. An empty place is an insertion. */
export interface Edit {
  readonly place: Span;
  readonly piece: TemplatePiece;
}

/** Names of the relations a query mentions (not those of its CTEs), each once. For the caller, who then looks them up. */
export function relationNames(query: string): RelationName[] {
  const names = new Map<string, RelationName>();
  for (const fields of rangeVars(readSource(query).select)) {
    const name = nameOf(fields);
    names.set(JSON.stringify(name), name);
  }
  return [...names.values()];
}

/** Expands plain views until only live relations are left. */
export function resolveQuery(query: string, lookup: RelationLookup): ResolvedQuery {
  const live: LiveRelation[] = [];
  return resolvedText(expand(query, lookup, live, deepest), live);
}

/** A query whose relations are named by their numbers. */
export function resolvedText(text: string, live: readonly LiveRelation[]): ResolvedQuery {
  const source = readSource(text);
  const mentions = rangeVars(source.select).map((fields): Mention => {
    const relation = live[Number(fields['relname'])];
    if (relation === undefined) throw millraceError('internal_error', { message: 'an expanded query names an unknown relation' });
    return { relation, place: placeOf(source, fields), renames: list(at(fields, 'alias')?.['colnames']).length > 0, fields };
  });
  return { source, mentions, live };
}

/**
 * The text with views in place of their names, and numbers in place of the names of live relations: a name printed in the body of a view
 * must not be caught by a common table expression of the query that uses the view.
 */
function expand(query: string, lookup: RelationLookup, live: LiveRelation[], levels: number): string {
  if (levels === 0) throw millraceError('feature_not_supported', { message: `views lie more than ${deepest} deep in each other` });
  const source = readSource(query);
  // FOR UPDATE OF names relations that are none of the FROM clause: refused before names are looked up.
  refuseUndefined(source.select);
  const edits = rangeVars(source.select).map((fields): Edit => {
    const relation = lookUp(fields, lookup);
    const inner =
      relation.kind === 'view'
        ? `(${expand(relation.query, lookup, live, levels - 1)})`
        : `${quoteIdentifier(liveSchema)}."${live.push(relation) - 1}"`;
    const alias = at(fields, 'alias') === undefined ? ` ${quoteIdentifier(String(fields['relname']))}` : '';
    return { place: placeOf(source, fields), piece: inner + alias };
  });
  return applyEdits(source.text, { start: 0, end: source.text.length }, edits)
    .filter((piece) => typeof piece === 'string')
    .join('');
}

/** A part of the text with edits made. */
export function applyEdits(text: string, part: Span, edits: readonly Edit[]): Template {
  const pieces: TemplatePiece[] = [];
  let done = part.start;
  for (const edit of [...edits].sort((a, b) => a.place.start - b.place.start)) {
    if (edit.place.start < part.start || edit.place.end > part.end) continue;
    pieces.push(text.slice(done, edit.place.start), edit.piece);
    done = edit.place.end;
  }
  pieces.push(text.slice(done, part.end));
  return pieces.filter((piece) => piece !== '');
}

/** The mentions as occurrences. Columns the query cannot mean are marked unused: their names appear nowhere in it. */
export function occurrencesOf(resolved: ResolvedQuery): Occurrence[] {
  const named = mentionedNames(resolved.source.select);
  return resolved.mentions.map(({ relation, renames }) => ({
    input: relation.id,
    key: relation.key,
    columns: relation.columns,
    used: named === null || renames ? null : relation.columns.map((column) => column.name).filter((name) => named.has(name)),
  }));
}

/** Last names of all column references and USING columns; null when a whole row is meant somewhere. */
function mentionedNames(select: Fields): ReadonlySet<string> | null {
  const names = new Set<string>();
  let wholeRow = false;
  walk(select, (kind, fields) => {
    if (kind === 'A_Star') wholeRow = true;
    if (kind === 'ColumnRef') for (const name of strings(fields['fields'])) names.add(name);
    if (kind === 'JoinExpr') {
      if (fields['isNatural'] === true) wholeRow = true;
      for (const name of strings(fields['usingClause'])) names.add(name);
    }
    return undefined;
  });
  return wholeRow ? null : names;
}

function nameOf(fields: Fields): RelationName {
  const schema = fields['schemaname'];
  return { schema: typeof schema === 'string' ? schema : null, name: String(fields['relname']) };
}

function lookUp(fields: Fields, lookup: RelationLookup): ReturnType<RelationLookup> & object {
  const { schema, name } = nameOf(fields);
  const relation = lookup(schema, name);
  if (relation === undefined) throw millraceError('undefined_object', { kind: 'relation', name, kinds_upper: 'TABLES' });
  return relation;
}

function placeOf(source: Source, fields: Fields): Span {
  let first = source.tokenOf(fields);
  let last = first;
  while (source.tokens[last + 1]?.text === '.') last += 2;
  if (source.tokens[last + 1]?.text === '*') last += 1;
  if (source.tokens[first - 1]?.keyword === 'ONLY') first -= 1;
  return { start: source.tokens[first]?.start ?? 0, end: source.tokens[last]?.end ?? 0 };
}

/** RangeVar nodes that are not names of CTEs. A CTE hides a relation of the same unqualified name where it is in scope. */
function rangeVars(select: Fields): Fields[] {
  const found: Fields[] = [];
  const visit = (value: unknown, hidden: ReadonlySet<string>): void => {
    if (Array.isArray(value)) {
      for (const item of value) visit(item, hidden);
      return;
    }
    if (!isFields(value)) return;
    let inScope = hidden;
    const withClause = value['withClause'];
    if (isFields(withClause)) {
      const ctes = list(withClause['ctes']).map((cte) => node(at(cte, 'CommonTableExpr')));
      const names = new Set(hidden);
      if (withClause['recursive'] === true) for (const cte of ctes) names.add(String(cte['ctename']));
      for (const cte of ctes) {
        visit(cte['ctequery'], new Set(names));
        names.add(String(cte['ctename']));
      }
      inScope = names;
    }
    for (const [key, inner] of Object.entries(value)) {
      if (key === 'withClause') continue;
      if (key === 'RangeVar') {
        const fields = node(inner);
        if (fields['schemaname'] !== undefined || !inScope.has(String(fields['relname']))) found.push(fields);
      } else visit(inner, inScope);
    }
  };
  visit(select, new Set());
  return found;
}
