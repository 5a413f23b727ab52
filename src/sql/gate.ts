/**
 * The question asked of every Query and Parse message: may this text hold an extended statement?
 * Invariant: "no" is always true. "Yes" only costs a real parse (`parseStatements`), which then decides.
 * It reads bytes and allocates nothing: ordinary SQL is answered by its first one or two keywords.
 * Time is linear in the text whatever the text is, because a client chooses it.
 */

const SEMICOLON = 0x3b;
const SLASH = 0x2f;
const STAR = 0x2a;
const DASH = 0x2d;
const PARENTHESIS = 0x28;
const LINE_FEED = 0x0a;
const CARRIAGE_RETURN = 0x0d;

/** Beyond this length a native search for ';' is cheaper than a loop, although it needs a view of the bytes. */
const SHORT_TEXT = 192;

/**
 * How many bytes of comments behind inner semicolons are read before the answer is "maybe". Comments can hold semicolons, so without
 * a limit a text made of both would be read again from each of them.
 */
const COMMENT_BUDGET = 65_536;

/** Lower case; upper case is found as well. A call may stand anywhere in a text, so this one word is looked for in all of it. */
const anywhere = new Uint8Array(Buffer.from('pgtrickle'));

/** How far the search may go on by the byte it sees last (Horspool): nearly always by the whole word. */
const strides = new Uint8Array(256).fill(anywhere.length);
for (const [index, byte] of anywhere.subarray(0, -1).entries()) {
  strides[byte] = anywhere.length - 1 - index;
  strides[byte & ~0x20] = anywhere.length - 1 - index;
}

/** What the first two keywords say: ordinary, to be parsed, or to be parsed if a word follows anywhere. */
type Verdict = 'no' | 'yes' | 'if-source' | 'if-swap' | 'if-subscribe';

/**
 * Whether the SQL text in bytes [start, end) (no terminating NUL) may hold an extended statement or a candidate (see ast.ts).
 */
export function mayBeExtended(text: Uint8Array, start: number, end: number): boolean {
  if (mentionsPgtrickle(text, start, end)) return true;
  let at = skipBlank(text, start, end);
  let budget = COMMENT_BUDGET;
  let noSource = false;
  let noSwap = false;
  let noSubscribe = false;
  // A statement starts at the start of the text or behind a semicolon byte. Looking behind each one, quoted or not, needs no lexer
  // and can only say "yes" too often.
  for (let semicolon = at; ; ) {
    const verdict = verdictAt(text, at, end);
    if (verdict === 'yes') return true;
    // One search to the end answers for every later statement too.
    if (verdict === 'if-source' && !noSource) {
      if (containsWord(text, at, end, 'source')) return true;
      noSource = true;
    } else if (verdict === 'if-swap' && !noSwap) {
      if (containsWord(text, at, end, 'swap')) return true;
      noSwap = true;
    } else if (verdict === 'if-subscribe' && !noSubscribe) {
      if (containsWord(text, at, end, 'subscribe')) return true;
      noSubscribe = true;
    }
    semicolon = findSemicolon(text, semicolon, end);
    if (semicolon === -1) return false;
    semicolon++;
    at = skipSpace(text, semicolon, end);
    const byte = at < end ? text[at] : undefined;
    if (byte === SLASH || byte === DASH) {
      const afterComment = skipBlank(text, at, end);
      budget -= afterComment - at;
      if (budget < 0) return true;
      at = afterComment;
    }
  }
}

function mentionsPgtrickle(text: Uint8Array, start: number, end: number): boolean {
  const last = anywhere.length - 1;
  for (let at = start + last; at < end; ) {
    const byte = text[at] ?? 0;
    if ((byte | 0x20) === 0x65 && isPgtrickle(text, at - last)) return true;
    at += strides[byte] ?? 1;
  }
  return false;
}

function isPgtrickle(text: Uint8Array, at: number): boolean {
  for (let i = 0; i < anywhere.length; i++) if (((text[at + i] ?? 0) | 0x20) !== anywhere[i]) return false;
  return true;
}

function findSemicolon(text: Uint8Array, from: number, end: number): number {
  if (end - from > SHORT_TEXT) {
    const found = text.subarray(from, end).indexOf(SEMICOLON);
    return found === -1 ? -1 : from + found;
  }
  for (let i = from; i < end; i++) if (text[i] === SEMICOLON) return i;
  return -1;
}

function isSpace(byte: number | undefined): boolean {
  return byte === 0x20 || (byte !== undefined && byte >= 0x09 && byte <= 0x0d);
}

function skipSpace(text: Uint8Array, from: number, end: number): number {
  let i = from;
  while (i < end && isSpace(text[i])) i++;
  return i;
}

/** Past whitespace, `--` comments and nested block comments; `end` when a comment is not closed. */
function skipBlank(text: Uint8Array, from: number, end: number): number {
  let i = from;
  for (;;) {
    i = skipSpace(text, i, end);
    if (i + 1 >= end) return i;
    if (text[i] === DASH && text[i + 1] === DASH) {
      i += 2;
      while (i < end && text[i] !== LINE_FEED && text[i] !== CARRIAGE_RETURN) i++;
    } else if (text[i] === SLASH && text[i + 1] === STAR) {
      i = skipBlockComment(text, i + 2, end);
    } else {
      return i;
    }
  }
}

function skipBlockComment(text: Uint8Array, from: number, end: number): number {
  let depth = 1;
  let i = from;
  while (i < end) {
    if (text[i] === STAR && text[i + 1] === SLASH) {
      i += 2;
      if (--depth === 0) return Math.min(i, end);
    } else if (text[i] === SLASH && text[i + 1] === STAR) {
      i += 2;
      depth++;
    } else {
      i++;
    }
  }
  return end;
}

/** `word` is lower case. The byte behind must not continue the word. */
function isWord(text: Uint8Array, at: number, end: number, word: string): boolean {
  const stop = at + word.length;
  if (stop > end) return false;
  for (let i = 0; i < word.length; i++) if (((text[at + i] ?? 0) | 0x20) !== word.charCodeAt(i)) return false;
  return stop === end || !continuesWord(text[stop] ?? 0);
}

function continuesWord(byte: number): boolean {
  const lower = byte | 0x20;
  return (lower >= 0x61 && lower <= 0x7a) || (byte >= 0x30 && byte <= 0x39) || byte === 0x5f || byte === 0x24 || byte >= 0x80;
}

function containsWord(text: Uint8Array, from: number, end: number, word: string): boolean {
  const first = word.charCodeAt(0);
  for (let i = from; i < end; i++) {
    if (((text[i] ?? 0) | 0x20) === first && isWord(text, i, end, word) && !(i > from && continuesWord(text[i - 1] ?? 0))) return true;
  }
  return false;
}

function verdictAt(text: Uint8Array, at: number, end: number): Verdict {
  switch (at < end ? (text[at] ?? 0) | 0x20 : 0) {
    case 0x63: // c
      if (isWord(text, at, end, 'create')) return createVerdict(text, at + 6, end);
      return isWord(text, at, end, 'copy') ? copyVerdict(text, at + 4, end) : 'no';
    case 0x61: // a
      if (isWord(text, at, end, 'alter')) return alterVerdict(text, at + 5, end);
      return isWord(text, at, end, 'acknowledge') ? 'yes' : 'no';
    case 0x64: // d
      if (isWord(text, at, end, 'drop')) return dropVerdict(text, at + 4, end);
      return isWord(text, at, end, 'declare') ? 'if-subscribe' : 'no';
    case 0x73: // s
      if (isWord(text, at, end, 'show')) return showVerdict(text, at + 4, end);
      return isWord(text, at, end, 'subscribe') ? 'yes' : 'no';
    case 0x65: // e
      return isWord(text, at, end, 'explain') ? explainVerdict(text, at + 7, end) : 'no';
    case 0x76: // v
      return isWord(text, at, end, 'validate') ? 'yes' : 'no';
    case 0x72: // r
      return isWord(text, at, end, 'refresh') ? 'yes' : 'no';
    default:
      return 'no';
  }
}

/** A comment between the first two keywords is too rare to be read here, and reading it could cost quadratic time. */
function isComment(byte: number | undefined): boolean {
  return byte === SLASH || byte === DASH;
}

/** What exists in Millrace only; see head.ts. */
function isOwnObject(text: Uint8Array, at: number, end: number): boolean {
  return (
    isWord(text, at, end, 'source') ||
    isWord(text, at, end, 'secret') ||
    isWord(text, at, end, 'connection') ||
    isWord(text, at, end, 'sink') ||
    isWord(text, at, end, 'durable')
  );
}

function createVerdict(text: Uint8Array, from: number, end: number): Verdict {
  const at = skipSpace(text, from, end);
  if (at >= end) return 'no';
  if (isComment(text[at])) return 'yes';
  if (isWord(text, at, end, 'table')) return 'if-source';
  if (isWord(text, at, end, 'materialized')) return 'yes';
  if (isOwnObject(text, at, end) || isWord(text, at, end, 'migration')) return 'yes';
  if (isWord(text, at, end, 'temp') || isWord(text, at, end, 'temporary') || isWord(text, at, end, 'unlogged')) return 'if-source';
  return isWord(text, at, end, 'local') || isWord(text, at, end, 'global') ? 'if-source' : 'no';
}

/** COPY (SUBSCRIBE: of COPY with a parenthesis only the first word behind it is read. */
function copyVerdict(text: Uint8Array, from: number, end: number): Verdict {
  let at = skipSpace(text, from, end);
  if (at >= end) return 'no';
  if (isComment(text[at])) return 'if-subscribe';
  if (text[at] !== PARENTHESIS) return 'no';
  at = skipSpace(text, at + 1, end);
  if (isComment(text[at])) return 'if-subscribe';
  return isWord(text, at, end, 'subscribe') ? 'yes' : 'no';
}

/** EXPLAIN CREATE MIGRATION */
function explainVerdict(text: Uint8Array, from: number, end: number): Verdict {
  let at = skipSpace(text, from, end);
  if (isComment(text[at])) return at < end ? 'yes' : 'no';
  if (!isWord(text, at, end, 'create')) return 'no';
  at = skipSpace(text, at + 6, end);
  return at < end && (isComment(text[at]) || isWord(text, at, end, 'migration')) ? 'yes' : 'no';
}

function alterVerdict(text: Uint8Array, from: number, end: number): Verdict {
  const at = skipSpace(text, from, end);
  if (at >= end) return 'no';
  if (isComment(text[at])) return 'yes';
  if (isOwnObject(text, at, end) || isWord(text, at, end, 'migration')) return 'yes';
  return isWord(text, at, end, 'schema') ? 'if-swap' : 'no';
}

function dropVerdict(text: Uint8Array, from: number, end: number): Verdict {
  const at = skipSpace(text, from, end);
  if (at >= end) return 'no';
  if (isComment(text[at])) return 'yes';
  return isWord(text, at, end, 'table') ||
    isWord(text, at, end, 'view') ||
    isWord(text, at, end, 'materialized') ||
    isWord(text, at, end, 'schema') ||
    isOwnObject(text, at, end)
    ? 'yes'
    : 'no';
}

function showVerdict(text: Uint8Array, from: number, end: number): Verdict {
  const at = skipSpace(text, from, end);
  if (at >= end) return 'no';
  if (isComment(text[at])) return 'yes';
  return isWord(text, at, end, 'sources') ||
    isWord(text, at, end, 'sinks') ||
    isWord(text, at, end, 'tables') ||
    isWord(text, at, end, 'materialized') ||
    isWord(text, at, end, 'connections') ||
    isWord(text, at, end, 'secrets') ||
    isWord(text, at, end, 'migrations') ||
    isWord(text, at, end, 'create')
    ? 'yes'
    : 'no';
}
