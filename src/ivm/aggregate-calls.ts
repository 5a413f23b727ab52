/**
 * Aggregate calls and group expressions inside the target list.
 * Invariant: a target that is taken apart is put together again from group expressions and aggregates alone; nothing that depends on a
 * single row is left in it.
 */
import { type Source, type Span, textOf } from './source-text.ts';
import { type Fields, functionName, list, walk } from './tree.ts';

export type KnownAggregate = 'count' | 'sum' | 'avg' | 'min' | 'max';

export interface AggregateCall {
  readonly name: KnownAggregate;
  /** Text of the argument; null for count(*). */
  readonly argument: string | null;
  readonly argumentNode: unknown;
  /** Text of the condition of FILTER. */
  readonly filter: string | null;
}

/** A target in pieces: text, or the number of a group expression or of an aggregate call. */
export type TargetPiece = string | { readonly group: number } | { readonly aggregate: number };

const known: ReadonlySet<string> = new Set(['count', 'sum', 'avg', 'min', 'max']);

/** The name of one of the five built-in aggregates that are maintained by arithmetic, if it is one. */
export function knownAggregate(name: string): KnownAggregate | null {
  const short = name.startsWith('pg_catalog.') ? name.slice('pg_catalog.'.length) : name;
  return known.has(short) ? (short as KnownAggregate) : null;
}

/** Takes a target apart. New aggregate calls are added to `calls`. Null when it cannot be done. */
export function takeApart(
  source: Source,
  target: { readonly span: Span; readonly value: unknown },
  groups: readonly Span[],
  calls: AggregateCall[],
): TargetPiece[] | null {
  const found: { readonly place: Span; readonly piece: TargetPiece }[] = [];
  const columns: Span[] = [];
  let possible = true;
  walk(target.value, (kind, fields) => {
    if (kind === 'ColumnRef') columns.push(tokenSpan(source, fields));
    if (kind !== 'FuncCall' || knownAggregate(functionName(fields)) === null) return undefined;
    const read = readCall(source, fields);
    if (read === null) {
      possible = false;
      return false;
    }
    found.push({ place: read.place, piece: { aggregate: addCall(calls, read.call) } });
    return false;
  });
  if (!possible) return null;
  for (const place of groupPlaces(source, target.span, groups)) {
    if (!found.some((other) => overlap(other.place, place.place))) found.push(place);
  }
  const covered = (column: Span): boolean => found.some(({ place }) => place.start <= column.start && column.end <= place.end);
  if (!columns.every(covered)) return null;
  found.sort((a, b) => a.place.start - b.place.start);
  const pieces: TargetPiece[] = [];
  let done = target.span.start;
  for (const { place, piece } of found) {
    pieces.push(source.text.slice(done, place.start), piece);
    done = place.end;
  }
  pieces.push(source.text.slice(done, target.span.end));
  return pieces.filter((piece) => piece !== '');
}

/** Places inside a target where the tokens of a group expression stand, longest expressions first. */
function groupPlaces(source: Source, span: Span, groups: readonly Span[]): { place: Span; piece: TargetPiece }[] {
  const inside = source.tokens.filter((token) => token.start >= span.start && token.end <= span.end);
  const found: { place: Span; piece: TargetPiece }[] = [];
  const wanted = groups
    .map((group, i) => ({ i, tokens: source.tokens.filter((t) => t.start >= group.start && t.end <= group.end).map((t) => t.text) }))
    .sort((a, b) => b.tokens.length - a.tokens.length);
  for (const { i, tokens } of wanted) {
    for (let from = 0; from + tokens.length <= inside.length; from++) {
      const matches = tokens.every((text, offset) => inside[from + offset]?.text === text);
      const before = inside[from - 1]?.text;
      const behind = inside[from + tokens.length]?.text;
      // A name with more behind it is another name; a type with a modifier is another type; a function name is none of ours.
      if (!matches || before === '.' || behind === '.' || behind === '(' || behind === '[') continue;
      const place = { start: inside[from]?.start ?? 0, end: inside[from + tokens.length - 1]?.end ?? 0 };
      if (!found.some((other) => overlap(other.place, place))) found.push({ place, piece: { group: i } });
    }
  }
  return found;
}

function readCall(source: Source, fields: Fields): { readonly place: Span; readonly call: AggregateCall } | null {
  const name = knownAggregate(functionName(fields));
  const plain =
    fields['agg_distinct'] === undefined &&
    fields['agg_order'] === undefined &&
    fields['over'] === undefined &&
    fields['agg_within_group'] === undefined &&
    fields['func_variadic'] === undefined;
  const first = source.tokenOf(fields);
  let open = first;
  while (source.tokens[open + 1]?.text === '.') open += 2;
  open += 1;
  const close = source.tokens[open]?.partner ?? -1;
  if (name === null || !plain || close < 0) return null;
  const args = list(fields['args']);
  const star = fields['agg_star'] === true;
  if (star ? name !== 'count' : args.length !== 1) return null;
  const end = filterEnd(source, close);
  const text = (from: number, to: number): string => source.text.slice(source.tokens[from]?.end ?? 0, source.tokens[to]?.start ?? 0);
  return {
    place: { start: source.tokens[first]?.start ?? 0, end: source.tokens[end]?.end ?? 0 },
    call: {
      name,
      argument: star ? null : text(open, close),
      argumentNode: args[0] ?? null,
      // Behind "FILTER (WHERE".
      filter: end === close ? null : text(close + 3, end),
    },
  };
}

/** Index of the last token of the call: of its argument list, or of FILTER (WHERE ..). */
function filterEnd(source: Source, close: number): number {
  return source.tokens[close + 1]?.keyword === 'FILTER' ? (source.tokens[close + 2]?.partner ?? close) : close;
}

function addCall(calls: AggregateCall[], call: AggregateCall): number {
  const same = calls.findIndex((other) => other.name === call.name && other.argument === call.argument && other.filter === call.filter);
  if (same >= 0) return same;
  calls.push(call);
  return calls.length - 1;
}

function tokenSpan(source: Source, fields: Fields): Span {
  const token = source.tokens[source.tokenOf(fields)];
  return { start: token?.start ?? 0, end: token?.end ?? 0 };
}

function overlap(a: Span, b: Span): boolean {
  return a.start < b.end && b.start < a.end;
}

/** Text of each group expression. */
export function groupTexts(source: Source, groups: readonly Span[]): string[] {
  return groups.map((group) => textOf(source, group));
}
