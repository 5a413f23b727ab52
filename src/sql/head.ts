/**
 * Whose statement is it? Decided from its first tokens.
 * Invariant: 'extended' only for openings that Postgres itself cannot accept, so that an error of ours never replaces a success of the
 * upstream; 'candidate' for openings that both know; everything else is 'ordinary' and not read further.
 */
import { type LexerOptions, nextToken } from './lexer.ts';

export type Head = 'extended' | 'candidate' | 'ordinary';

/**
 * The n-th token of a statement: a word in upper case, the characters of a symbol, `"` for a quoted name, `'` for any other literal,
 * and nothing behind the end.
 */
type Opening = (index: number) => string;

/** Reads no further than it is asked. */
function openingOf(text: string, from: number, end: number, options: LexerOptions): Opening {
  const read: string[] = [];
  let at = from;
  return (index) => {
    while (read.length <= index) {
      const token = nextToken(text, at, options);
      at = token.end;
      if (token.start >= end || token.kind === 'end') read.push('');
      else if (token.kind === 'word') read.push(text.slice(token.start, token.end).toUpperCase());
      else if (token.kind === 'symbol') read.push(text.slice(token.start, token.end));
      else read.push(token.kind === 'quoted' ? '"' : "'");
    }
    return read[index] ?? '';
  };
}

const ownObjects: ReadonlySet<string> = new Set(['SECRET', 'CONNECTION', 'SOURCE', 'SINK']);
const dropCandidates: ReadonlySet<string> = new Set(['TABLE', 'VIEW', 'MATERIALIZED', 'SCHEMA']);
const shownObjects: ReadonlySet<string> = new Set(['SOURCES', 'SINKS', 'TABLES', 'CONNECTIONS', 'SECRETS', 'MIGRATIONS']);
const createdObjects: ReadonlySet<string> = new Set(['SOURCE', 'SINK', 'TABLE', 'CONNECTION', 'MIGRATION']);
const persistence: ReadonlySet<string> = new Set(['TEMP', 'TEMPORARY', 'UNLOGGED', 'LOCAL', 'GLOBAL']);

/** What the opening of the statement at [from, end) says. */
export function classify(text: string, from: number, end: number, options: LexerOptions = {}): Head {
  const opening = openingOf(text, from, end, options);
  switch (opening(0)) {
    case 'CREATE':
      if (opening(1) === 'DURABLE') return 'extended';
      if (ownObjects.has(opening(1)) || opening(1) === 'MIGRATION') return 'extended';
      if (opening(1) === 'MATERIALIZED') return 'candidate';
      return isTableFromSource(opening) ? 'extended' : 'ordinary';
    case 'ALTER':
      if (ownObjects.has(opening(1)) || opening(1) === 'MIGRATION') return 'extended';
      return isSchemaSwap(opening) ? 'extended' : 'ordinary';
    case 'DROP':
      if (opening(1) === 'DURABLE') return 'extended';
      if (ownObjects.has(opening(1))) return 'extended';
      return dropCandidates.has(opening(1)) ? 'candidate' : 'ordinary';
    case 'SHOW':
      return isShow(opening) ? 'extended' : 'ordinary';
    case 'EXPLAIN':
      return opening(1) === 'CREATE' && opening(2) === 'MIGRATION' ? 'extended' : 'ordinary';
    case 'VALIDATE':
      return opening(1) === 'CONNECTION' ? 'extended' : 'ordinary';
    case 'SUBSCRIBE':
      return 'extended';
    case 'ACKNOWLEDGE':
      return opening(1) === 'DURABLE' ? 'extended' : 'ordinary';
    case 'COPY':
      return opening(1) === '(' && opening(2) === 'SUBSCRIBE' ? 'extended' : 'ordinary';
    case 'DECLARE':
      return isDeclareForSubscribe(opening) ? 'extended' : 'ordinary';
    case 'FETCH':
    case 'MOVE':
    case 'CLOSE':
      return options.subscriptionCursors === true ? 'candidate' : 'ordinary';
    case 'REFRESH':
      return opening(1) === 'MATERIALIZED' ? 'candidate' : 'ordinary';
    default:
      return 'ordinary';
  }
}

/** CREATE [persistence] TABLE [IF NOT EXISTS] name [(..)] FROM SOURCE: Postgres knows no FROM in that place. */
function isTableFromSource(opening: Opening): boolean {
  let i = 1;
  while (persistence.has(opening(i))) i++;
  if (opening(i++) !== 'TABLE') return false;
  if (opening(i) === 'IF' && opening(i + 1) === 'NOT' && opening(i + 2) === 'EXISTS') i += 3;
  i = behindName(opening, i);
  if (i === -1) return false;
  i = behindParentheses(opening, i);
  return opening(i) === 'FROM' && opening(i + 1) === 'SOURCE';
}

/** DECLARE name [..] CURSOR [..] FOR SUBSCRIBE, with no more than the words that may stand between. */
function isDeclareForSubscribe(opening: Opening): boolean {
  for (let i = 2; i < 10; i++) if (opening(i) === 'FOR') return opening(i + 1) === 'SUBSCRIBE';
  return false;
}

function isSchemaSwap(opening: Opening): boolean {
  if (opening(1) !== 'SCHEMA') return false;
  const i = opening(2) === 'IF' && opening(3) === 'EXISTS' ? 4 : 2;
  return isName(opening(i)) && opening(i + 1) === 'SWAP';
}

/** `SHOW tables.x` shows a setting, whose name has a dot. */
function isShow(opening: Opening): boolean {
  if (opening(1) === 'CREATE') return createdObjects.has(opening(2)) || (opening(2) === 'MATERIALIZED' && opening(3) === 'VIEW');
  if (opening(1) === 'MATERIALIZED') return opening(2) === 'VIEWS';
  return shownObjects.has(opening(1)) && opening(2) !== '.';
}

function isName(token: string): boolean {
  return token === '"' || /^[A-Za-z_\u0080-\uffff]/.test(token);
}

/** The index behind `a`, `a.b`, ..; -1 when no name is there. */
function behindName(opening: Opening, from: number): number {
  let i = from;
  while (isName(opening(i))) {
    if (opening(i + 1) !== '.') return i + 1;
    i += 2;
  }
  return -1;
}

/** The index behind (..), if it is there. */
function behindParentheses(opening: Opening, from: number): number {
  if (opening(from) !== '(') return from;
  let depth = 0;
  for (let i = from; opening(i) !== ''; i++) {
    if (opening(i) === '(') depth++;
    else if (opening(i) === ')' && --depth === 0) return i + 1;
  }
  return from;
}
