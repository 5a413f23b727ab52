/**
 * The clauses of one SELECT as pieces of its text.
 * Invariant: a piece is a whole expression as Postgres printed it. Found by keywords outside of all brackets: pg_get_viewdef puts every
 * compound expression in parentheses, so that nothing but clauses is left outside (`IS DISTINCT FROM` is told apart all the same).
 */
import { type Source, type Span, spanOf, textOf } from './source-text.ts';
import { at, type Fields, list, strings } from './tree.ts';

export interface Target {
  readonly name: string;
  readonly span: Span;
  /** Node of the expression. */
  readonly value: unknown;
}

export interface SelectParts {
  readonly targets: readonly Target[];
  readonly from: Span;
  /** Offset just behind the target list. */
  readonly targetsEnd: number;
  readonly where: Span | null;
  readonly groups: readonly Span[];
  readonly having: Span | null;
}

type Clause = 'SELECT' | 'FROM' | 'WHERE' | 'GROUP' | 'HAVING' | 'REST';

/**
 * Cuts a SELECT that is not a set operation and has FROM. `first`: index of its SELECT keyword; `end`: index of the first token behind it.
 * Null when the text is laid out in a way this does not read; the caller then treats the query as a whole.
 */
export function selectParts(source: Source, select: Fields, first: number, end: number): SelectParts | null {
  const { tokens } = source;
  if (tokens[first]?.keyword !== 'SELECT') return null;
  const items = new Map<Clause, Span[]>();
  let clause: Clause = 'SELECT';
  let from = first + 1;
  if (tokens[from]?.keyword === 'DISTINCT' || tokens[from]?.keyword === 'ALL') from += 1;
  const targetsFrom = from;
  const close = (last: number): void => {
    if (from <= last) items.set(clause, [...(items.get(clause) ?? []), spanOf(source, from, last)]);
  };
  for (let i = from; i < end; i++) {
    const token = tokens[i];
    if (token === undefined) return null;
    if (token.partner > i) {
      i = token.partner;
      continue;
    }
    if (token.text === ',' && (clause === 'SELECT' || clause === 'GROUP')) {
      close(i - 1);
      from = i + 1;
      continue;
    }
    const next = clauseAt(source, i);
    if (next === null) continue;
    close(i - 1);
    clause = next;
    from = i + (next === 'GROUP' ? 2 : 1);
    if (next === 'GROUP') i += 1;
  }
  close(end - 1);
  const targetSpans = items.get('SELECT') ?? [];
  const fromSpan = items.get('FROM')?.[0];
  const targets = readTargets(source, select, targetSpans);
  if (targets === null || fromSpan === undefined || targetsFrom >= end) return null;
  const groups = items.get('GROUP') ?? [];
  if (groups.length !== list(select['groupClause']).length) return null;
  return {
    targets,
    from: fromSpan,
    targetsEnd: targetSpans.at(-1)?.end ?? 0,
    where: items.get('WHERE')?.[0] ?? null,
    groups,
    having: items.get('HAVING')?.[0] ?? null,
  };
}

function clauseAt(source: Source, i: number): Clause | null {
  const { tokens } = source;
  const by = tokens[i + 1]?.keyword === 'BY';
  switch (tokens[i]?.keyword) {
    case 'FROM':
      return tokens[i - 1]?.keyword === 'DISTINCT' ? null : 'FROM';
    case 'WHERE':
      return 'WHERE';
    case 'GROUP':
      return by ? 'GROUP' : null;
    case 'HAVING':
      return 'HAVING';
    case 'ORDER':
      return by ? 'REST' : null;
    case 'WINDOW':
    case 'LIMIT':
    case 'OFFSET':
    case 'FETCH':
    case 'FOR':
      return 'REST';
    default:
      return null;
  }
}

function readTargets(source: Source, select: Fields, spans: readonly Span[]): Target[] | null {
  const entries = list(select['targetList']);
  if (entries.length !== spans.length) return null;
  const targets: Target[] = [];
  for (const [i, entry] of entries.entries()) {
    const fields = at(entry, 'ResTarget');
    const span = spans[i];
    if (fields === undefined || span === undefined) return null;
    const value = fields['val'];
    if (typeof fields['name'] !== 'string') {
      const name = strings(at(value, 'ColumnRef')?.['fields']).at(-1) ?? '?column?';
      targets.push({ name, span, value });
      continue;
    }
    const last = source.tokens.findIndex((token) => token.end === span.end);
    const expressionEnd = source.tokens[last - 2]?.end;
    if (source.tokens[last - 1]?.keyword !== 'AS' || expressionEnd === undefined) return null;
    targets.push({ name: fields['name'], span: { start: span.start, end: expressionEnd }, value });
  }
  return targets;
}

/** Text of a piece that may be missing. */
export function textOrNull(source: Source, span: Span | null): string | null {
  return span === null ? null : textOf(source, span);
}
