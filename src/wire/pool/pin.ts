/**
 * What a statement leaves behind in its session: such a client keeps its server connection, because state must not reach the next client.
 * Invariant: "nothing" is only said of a text whose words show no session state. What a function does inside cannot be seen from here
 * (documentation: "Pool modes"); a word in a string or comment may say "something", which costs a server connection and nothing else.
 * Reads bytes, and allocates only for a word that starts a statement that may matter.
 */

/** What the text does beyond its transaction. */
export type SessionEffect =
  /** Keeps the server connection for good; the reason is shown to the operator. */
  | { readonly kind: 'pin'; readonly reason: string }
  /** SET of a parameter: only one that the server reports can be carried over to another connection. Lower case. */
  | { readonly kind: 'set'; readonly parameter: string }
  /** RESET of a parameter, or of `all`; DISCARD ALL too. Lower case. */
  | { readonly kind: 'reset'; readonly parameter: string }
  /** DEALLOCATE ALL, DISCARD ALL: the prepared statements are gone. */
  | { readonly kind: 'forget' }
  /** PREPARE, EXECUTE or DEALLOCATE of a prepared statement by its name. Bytes of the name as latin1. */
  | { readonly kind: 'statement'; readonly word: 'prepare' | 'execute' | 'deallocate'; readonly name: string };

const none: readonly SessionEffect[] = [];
const pin = (reason: string): readonly SessionEffect[] => [{ kind: 'pin', reason }];

/** A word is looked at when its first letter and length are among these; anything else costs a comparison a word. */
const words = ['temp', 'temporary', 'hold', 'set_config', 'execute'];
const interesting = new Uint8Array(128);
for (const word of [...words, 'pg_']) interesting[word.charCodeAt(0)] = 1;
/** Statements that are looked at because of their first word. */
const firstWords = new Set(['set', 'reset', 'discard', 'listen', 'prepare', 'load', 'deallocate']);
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
const minus = 0x2d;
const slash = 0x2f;
const star = 0x2a;
const underscore = 0x5f;

/** The effects of SQL text in bytes [start, end), in order. */
export function sessionEffects(text: Uint8Array, start: number, end: number): readonly SessionEffect[] {
  let effects = none;
  let first = true;
  // Up to here no string has begun that is still open.
  let certain = start;
  // Behind what may be a comment or a part of a string any word may be the first of a statement.
  let anywhere = false;
  for (let at = start; at < end; ) {
    const byte = text[at] ?? 0;
    if (letter[byte] === 0) {
      if (byte === semicolon) first = true;
      else if (first && opensComment(text, at)) {
        if (isPlain(text, certain, at)) {
          at = afterComment(text, at, end);
          certain = at;
          continue;
        }
        anywhere = true;
      }
      at++;
      continue;
    }
    let stop = at + 1;
    while (stop < end && letter[text[stop] ?? 0] === 1) stop++;
    if (first || anywhere || interesting[byte | 0x20] === 1) {
      const found = first || anywhere ? statementEffect(text, at, stop, end) : wordEffect(text, at, stop, end);
      if (found !== none) effects = effects === none ? found : [...effects, ...found];
    }
    first = false;
    at = stop;
  }
  return effects;
}

function opensComment(text: Uint8Array, at: number): boolean {
  const byte = text[at];
  return (byte === slash && text[at + 1] === star) || (byte === minus && text[at + 1] === minus);
}

/** Whether no string, quoted name or comment can begin in the range. */
function isPlain(text: Uint8Array, from: number, to: number): boolean {
  for (let at = from; at < to; at++) {
    const byte = text[at];
    if (byte === 0x27 || byte === 0x22 || byte === 0x24 || opensComment(text, at)) return false;
  }
  return true;
}

/** Behind the comment that begins at `from`; comments nest. */
function afterComment(text: Uint8Array, from: number, end: number): number {
  let at = from + 2;
  if (text[from] === minus) {
    while (at < end && text[at] !== 0x0a && text[at] !== 0x0d) at++;
    return at;
  }
  for (let depth = 1; at < end && depth > 0; ) {
    if (text[at] === star && text[at + 1] === slash) {
      depth--;
      at += 2;
    } else if (text[at] === slash && text[at + 1] === star) {
      depth++;
      at += 2;
    } else at++;
  }
  return at;
}

function lower(text: Uint8Array, at: number, stop: number): string {
  let word = '';
  for (let i = at; i < stop; i++)
    word += String.fromCharCode((text[i] ?? 0) | ((text[i] ?? 0) >= 0x41 && (text[i] ?? 0) <= 0x5a ? 0x20 : 0));
  return word;
}

function wordEffect(text: Uint8Array, at: number, stop: number, end: number): readonly SessionEffect[] {
  const length = stop - at;
  if (length < 4 || length > 34) return none;
  const second = (text[at + 1] ?? 0) | 0x20;
  switch ((text[at] ?? 0) | 0x20) {
    case 0x74: // temp, temporary
      if (second !== 0x65 || (length !== 4 && length !== 9)) return none;
      return /^temp(orary)?$/.test(lower(text, at, stop)) ? pin('temporary object') : none;
    case 0x65: // EXECUTE, also behind EXPLAIN and CREATE TABLE AS
      return length === 7 && lower(text, at, stop) === 'execute' ? namedEffect('execute', restOf(text, stop, end)) : none;
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

function statementEffect(text: Uint8Array, at: number, stop: number, end: number): readonly SessionEffect[] {
  const length = stop - at;
  const may = length <= longestFirstWord && mayBeFirst[((text[at] ?? 0) | 0x20) * 16 + length] === 1;
  const word = may ? lower(text, at, stop) : '';
  if (!firstWords.has(word)) return wordEffect(text, at, stop, end);
  const rest = restOf(text, stop, end);
  switch (word) {
    case 'listen':
      return pin('LISTEN');
    case 'load':
      return pin('LOAD');
    case 'prepare':
      return /^\s+transaction\b/i.test(rest) ? none : [...pin('PREPARE'), ...namedEffect('prepare', rest)];
    case 'deallocate':
      return /^\s+(?:prepare\s+)?all\b/i.test(rest) ? [{ kind: 'forget' }] : namedEffect('deallocate', rest);
    case 'discard':
      return /^\s+all\b/i.test(rest) ? [{ kind: 'reset', parameter: 'all' }, { kind: 'forget' }] : none;
    case 'reset':
      return settingEffect(rest, 'reset');
    case 'set':
      return settingEffect(rest, 'set');
    default:
      return none;
  }
}

function restOf(text: Uint8Array, from: number, end: number): string {
  return Buffer.from(text.buffer, text.byteOffset + from, Math.min(end - from, 256)).toString('latin1');
}

/** `rest` is what follows the word. */
function namedEffect(word: 'prepare' | 'execute' | 'deallocate', rest: string): readonly SessionEffect[] {
  const match = /^(?:\s|--[^\n\r]*|\/\*.*?\*\/)*(?:prepare\s+)?(?:"((?:[^"]|"")+)"|([\w$\x80-\xff]+))/is.exec(rest);
  if (match === null) return none;
  const [, quoted, plain = ''] = match;
  return [{ kind: 'statement', word, name: quoted?.replaceAll('""', '"') ?? plain.replace(/[A-Z]+/g, (upper) => upper.toLowerCase()) }];
}

/** Of SET and RESET. `rest` is what follows the word. */
function settingEffect(rest: string, word: 'set' | 'reset'): readonly SessionEffect[] {
  const match = /^\s+(?:(local|session)\s+)?(?:(time)\s+zone\b|"?([\w.$]+)"?)(\s*(?:=|\bto\b|(?<=\b(?:zone|names))\b)\s*default\b)?/i.exec(
    rest,
  );
  if (match === null) return pin(word.toUpperCase());
  const [, scope = '', zone, name = '', byDefault] = match;
  if (scope.toLowerCase() === 'local') return none;
  const parameter = zone === undefined ? name.toLowerCase() : 'timezone';
  const kind = byDefault === undefined ? word : 'reset';
  switch (parameter) {
    // SET TRANSACTION, SET CONSTRAINTS last for the transaction; SESSION CHARACTERISTICS are reported in part only.
    case 'transaction':
    case 'constraints':
      return scope === '' ? none : pin('SET');
    case 'names':
      return [{ kind, parameter: 'client_encoding' }];
    case 'schema':
      return [{ kind, parameter: 'search_path' }];
    default:
      return [{ kind, parameter }];
  }
}
