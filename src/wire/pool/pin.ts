/**
 * What a statement leaves behind in its session: such a client keeps its server connection, because state must not reach the next client.
 * Invariant: "nothing" is only said of a text whose words show no session state. What a function does inside cannot be seen from here
 * (documentation: "Pool modes"); a word in a string or comment may say "something", which costs a server connection and nothing else.
 * Reads bytes, and allocates only for a word that starts a statement that may matter.
 */

/** What the text does beyond its transaction. */
export type SessionEffect =
  | { readonly kind: 'none' }
  /** Keeps the server connection for good; the reason is shown to the operator. */
  | { readonly kind: 'pin'; readonly reason: string }
  /** SET of a parameter: only one that the server reports can be carried over to another connection. Lower case. */
  | { readonly kind: 'set'; readonly parameter: string }
  /** DEALLOCATE of one prepared statement. */
  | { readonly kind: 'deallocate'; readonly name: string }
  /** DEALLOCATE ALL, DISCARD ALL: the prepared statements are gone. */
  | { readonly kind: 'forget' };

const none: SessionEffect = { kind: 'none' };
const pin = (reason: string): SessionEffect => ({ kind: 'pin', reason });

/** A word is looked at when its first letter and length are among these; anything else costs a comparison a word. */
const words = ['temp', 'temporary', 'hold', 'set_config'];
const interesting = new Uint8Array(128);
for (const word of [...words, 'pg_']) interesting[word.charCodeAt(0)] = 1;
/** Statements that are looked at because of their first word. */
const firstWords = new Set(['set', 'listen', 'prepare', 'load', 'deallocate', 'declare', 'discard', 'reset']);
const longestFirstWord = 10;
/** By first letter and length, so that SELECT and its like cost no string. */
const mayBeFirst = new Uint8Array(128 * 16);
for (const word of firstWords) mayBeFirst[word.charCodeAt(0) * 16 + word.length] = 1;

const letter = new Uint8Array(256);
for (let byte = 0; byte < 256; byte++) {
  const lower = byte | 0x20;
  if ((lower >= 0x61 && lower <= 0x7a) || (byte >= 0x30 && byte <= 0x39) || byte === 0x5f || byte === 0x24 || byte >= 0x80)
    letter[byte] = 1;
}
const semicolon = 0x3b;
const underscore = 0x5f;
const dash = 0x2d;
const slash = 0x2f;
const star = 0x2a;
const newline = 0x0a;
/** Deeper than any comment is nested. */
const toLineEnd = 1_000_000_000;

/** The effects of SQL text in bytes [start, end); the first that pins wins, else the last one. */
export function sessionEffect(text: Uint8Array, start: number, end: number): SessionEffect {
  let effect = none;
  let first = true;
  /** How deep in what looks like a comment in front of a statement: its words count as first ones, and so does the one behind it. */
  let comment = 0;
  for (let at = afterComments(text, start, end); at < end; ) {
    const byte = text[at] ?? 0;
    if (letter[byte] === 0) {
      if (byte === semicolon) first = true;
      else if (first && byte === dash && text[at + 1] === dash && comment === 0) comment = toLineEnd;
      else if (comment === toLineEnd && byte === newline) comment = 0;
      else if (first && byte === slash && text[at + 1] === star && comment !== toLineEnd) {
        comment++;
        at++;
      } else if (byte === star && text[at + 1] === slash && comment > 0 && comment !== toLineEnd) {
        comment--;
        at++;
      }
      at++;
      continue;
    }
    let stop = at + 1;
    while (stop < end && letter[text[stop] ?? 0] === 1) stop++;
    if (first || interesting[byte | 0x20] === 1) {
      const found = first ? statementEffect(text, at, stop, end) : wordEffect(text, at, stop, end);
      if (found.kind === 'pin') return found;
      if (found !== none) effect = found;
    }
    first = comment > 0;
    at = stop;
  }
  return effect;
}

/** Where the first statement begins. Further on what looks like a comment may stand in a string. */
function afterComments(text: Uint8Array, start: number, end: number): number {
  let at = start;
  while (at < end) {
    const byte = text[at] ?? 0;
    if (byte === dash && text[at + 1] === dash) {
      while (at < end && text[at] !== newline) at++;
    } else if (byte === slash && text[at + 1] === star) {
      let depth = 0;
      do {
        const pair = (text[at] ?? 0) * 256 + (text[at + 1] ?? 0);
        if (pair === slash * 256 + star) depth++;
        else if (pair === star * 256 + slash) depth--;
        at += pair === slash * 256 + star || pair === star * 256 + slash ? 2 : 1;
      } while (depth > 0 && at < end);
    } else if (letter[byte] === 1) return at;
    else at++;
  }
  return end;
}

function lower(text: Uint8Array, at: number, stop: number): string {
  let word = '';
  for (let i = at; i < stop; i++)
    word += String.fromCharCode((text[i] ?? 0) | ((text[i] ?? 0) >= 0x41 && (text[i] ?? 0) <= 0x5a ? 0x20 : 0));
  return word;
}

function wordEffect(text: Uint8Array, at: number, stop: number, end: number): SessionEffect {
  const length = stop - at;
  if (length < 4 || length > 34) return none;
  const second = (text[at + 1] ?? 0) | 0x20;
  switch ((text[at] ?? 0) | 0x20) {
    case 0x74: // temp, temporary
      if (second !== 0x65 || (length !== 4 && length !== 9)) return none;
      return /^temp(orary)?$/.test(lower(text, at, stop)) ? pin('temporary object') : none;
    case 0x68: // hold
      return length === 4 && lower(text, at, stop) === 'hold' ? pin('cursor with hold') : none;
    case 0x73: // set_config
      if (length !== 10 || lower(text, at, stop) !== 'set_config') return none;
      return isLocalSetConfig(text, stop, end) ? none : pin('set_config');
    case 0x70: {
      // pg_advisory_lock, pg_try_advisory_lock and their shared kin, pg_temp
      if (second !== 0x67 || text[at + 2] !== underscore) return none;
      const word = lower(text, at, stop);
      if (word === 'pg_temp') return pin('temporary object');
      return /^pg_(try_)?advisory_lock(_shared)?$/.test(word) ? pin('advisory lock') : none;
    }
    default:
      return none;
  }
}

/** `set_config(name, value, true)` lasts for the transaction only. Any doubt counts as a change that stays. */
function isLocalSetConfig(text: Uint8Array, from: number, end: number): boolean {
  const call = Buffer.from(text.buffer, text.byteOffset + from, Math.min(end - from, 4_096)).toString('latin1');
  return /^\s*\(\s*(?:'(?:[^'\\]|'')*'|\$\d+)(?:\s*::\s*\w+)?\s*,\s*(?:'(?:[^'\\]|'')*'|\$\d+)(?:\s*::\s*\w+)?\s*,\s*true\s*\)/i.test(call);
}

function statementEffect(text: Uint8Array, at: number, stop: number, end: number): SessionEffect {
  const length = stop - at;
  if (length > longestFirstWord) return none;
  const word = mayBeFirst[((text[at] ?? 0) | 0x20) * 16 + length] === 1 ? lower(text, at, stop) : '';
  if (!firstWords.has(word)) return wordEffect(text, at, stop, end);
  const rest = Buffer.from(text.buffer, text.byteOffset + stop, Math.min(end - stop, 256)).toString('latin1');
  switch (word) {
    case 'listen':
      return pin('LISTEN');
    case 'load':
      return pin('LOAD');
    case 'prepare':
      return /^\s+transaction\b/i.test(rest) ? none : pin('PREPARE');
    case 'deallocate': {
      const name = /^\s+(?:prepare\s+)?(?:"((?:[^"]|"")+)"|([\w$]+))/i.exec(rest);
      if (name === null) return none;
      if (/^all$/i.test(name[2] ?? '')) return { kind: 'forget' };
      return { kind: 'deallocate', name: name[1]?.replaceAll('""', '"') ?? (name[2] ?? '').toLowerCase() };
    }
    case 'discard':
      return /^\s+all\b/i.test(rest) ? { kind: 'forget' } : none;
    case 'set':
      return setEffect(rest);
    default:
      return none;
  }
}

function setEffect(rest: string): SessionEffect {
  const match = /^\s+(?:(local|session)\s+)?(?:(time)\s+zone\b|"?([\w.$]+)"?)/i.exec(rest);
  if (match === null) return pin('SET');
  const [, scope = '', zone, name = ''] = match;
  if (scope.toLowerCase() === 'local') return none;
  const parameter = zone === undefined ? name.toLowerCase() : 'timezone';
  switch (parameter) {
    // SET TRANSACTION, SET CONSTRAINTS last for the transaction; SESSION CHARACTERISTICS are reported in part only.
    case 'transaction':
    case 'constraints':
      return scope === '' ? none : pin('SET');
    case 'names':
      return { kind: 'set', parameter: 'client_encoding' };
    case 'schema':
      return { kind: 'set', parameter: 'search_path' };
    default:
      return { kind: 'set', parameter };
  }
}
