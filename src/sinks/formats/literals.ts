/**
 * Values as Postgres writes them as text, taken apart.
 * Invariant: a value is read exactly or not at all; what has no place in the result (infinity, more digits than there is room for) gives undefined.
 */

export interface Interval {
  readonly months: number;
  readonly days: number;
  readonly micros: bigint;
}

/** `1 year 2 mons -3 days +04:05:06.5`, as IntervalStyle postgres writes it. */
export function interval(text: string): Interval | undefined {
  const parts = /^(?:([+-]?\d+) years?)? ?(?:([+-]?\d+) mons?)? ?(?:([+-]?\d+) days?)? ?(?:([+-]?)(\d+:\d\d:\d\d(?:\.\d+)?))?$/.exec(text);
  if (parts === null) return undefined;
  const [, years, months, days, sign, time] = parts;
  const micros = time === undefined ? 0n : longTimeMicros(time);
  return {
    months: Number(years ?? 0) * 12 + Number(months ?? 0),
    days: Number(days ?? 0),
    micros: sign === '-' ? -micros : micros,
  };
}

function longTimeMicros(text: string): bigint {
  const [hours = '0', minutes = '0', rest = '0'] = text.split(':');
  const [seconds = '0', fraction = ''] = rest.split('.');
  return (BigInt(hours) * 3600n + BigInt(minutes) * 60n + BigInt(seconds)) * 1_000_000n + BigInt(fraction.padEnd(6, '0'));
}

/** `\x0102` or the older format of bytea with escapes. */
export function bytea(text: string): Buffer {
  if (text.startsWith('\\x')) return Buffer.from(text.slice(2), 'hex');
  const bytes: number[] = [];
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== '\\') bytes.push(text.charCodeAt(i));
    else if (text[i + 1] === '\\') bytes.push(92) && i++;
    else {
      bytes.push(Number.parseInt(text.slice(i + 1, i + 4), 8));
      i += 3;
    }
  }
  return Buffer.from(bytes);
}

/** `-12.50` as a whole number of units of 10^-scale; undefined for NaN and infinities, and for a number with more digits than that. */
export function unscaled(text: string, scale: number): bigint | undefined {
  const parts = /^(-?\d+)(?:\.(\d+))?$/.exec(text);
  if (parts === null) return undefined;
  const [, whole = '0', fraction = ''] = parts;
  const kept = fraction.replace(/0+$/, '');
  if (kept.length > scale) return undefined;
  return BigInt(whole + kept.padEnd(scale, '0'));
}

/** Elements of an array; arrays in it are arrays of their own. Lower bounds other than 1 are left out. */
export type ArrayElement = string | null | readonly ArrayElement[];

/** `{1,NULL,"a b"}`, `{{1,2},{3,4}}` or `[0:1]={1,2}`. */
export function arrayElements(text: string, delimiter: string): readonly ArrayElement[] | undefined {
  let at = text.startsWith('[') ? text.indexOf('=') + 1 : 0;
  const list = (): ArrayElement[] | undefined => {
    const elements: ArrayElement[] = [];
    at++; // {
    if (text[at] === '}') {
      at++;
      return elements;
    }
    for (;;) {
      const element = text[at] === '{' ? list() : scalar();
      if (element === undefined) return undefined;
      elements.push(element);
      const next = text[at++];
      if (next === '}') return elements;
      if (next !== delimiter) return undefined;
    }
  };
  const scalar = (): string | null => {
    if (text[at] === '"') return quoted();
    const start = at;
    let escaped = '';
    while (at < text.length && text[at] !== delimiter && text[at] !== '}') {
      if (text[at] === '\\') at++;
      escaped += text[at++];
    }
    return text.slice(start, at).toUpperCase() === 'NULL' ? null : escaped;
  };
  const quoted = (): string => {
    let value = '';
    for (at++; at < text.length && text[at] !== '"'; at++) {
      if (text[at] === '\\') at++;
      value += text[at];
    }
    at++;
    return value;
  };
  if (text[at] !== '{') return undefined;
  const elements = list();
  return at === text.length ? elements : undefined;
}

/** `(1,"a ""b""",)`: the values of a composite type; nothing between commas is NULL. */
export function recordValues(text: string): readonly (string | null)[] | undefined {
  if (!text.startsWith('(') || !text.endsWith(')')) return undefined;
  const values: (string | null)[] = [];
  let at = 1;
  for (;;) {
    let value = '';
    let present = false;
    let inQuotes = false;
    for (; at < text.length; at++) {
      const character = text[at];
      if (character === '"') {
        if (inQuotes && text[at + 1] === '"') value += text[at++];
        else inQuotes = !inQuotes;
        present = true;
      } else if (character === '\\') {
        value += text[++at];
        present = true;
      } else if (!inQuotes && (character === ',' || character === ')')) break;
      else {
        value += character;
        present = true;
      }
    }
    values.push(present ? value : null);
    if (at >= text.length - 1) return at === text.length - 1 ? values : undefined;
    at++;
  }
}
