/**
 * Types that hold every value of another. Pure.
 * Invariant: the cast that ALTER TABLE makes from a type to a wider one keeps every value; 'same text' says that each value is written as before,
 * so that rows without a key are still found by their hash.
 */
export type Widening = 'same text' | 'other text';

/** What a change of a column from one type to another does, both as format_type prints them. Null: it may lose values, or make others of them. */
export function widening(from: string, to: string): Widening | null {
  const [old, wanted] = [parsed(from), parsed(to)];
  if (old.isArray !== wanted.isArray) return null;
  if (old.name === wanted.name && String(old.limits) === String(wanted.limits)) return null;
  const integer = integerDigits[old.name];
  if (integer !== undefined) {
    const other = integerDigits[wanted.name];
    if (other !== undefined) return other > integer ? 'same text' : null;
    if (wanted.name !== 'numeric') return null;
    const [precision, scale = 0] = wanted.limits;
    if (precision === undefined) return 'same text';
    if (precision - scale < integer) return null;
    return scale === 0 ? 'same text' : 'other text';
  }
  if (old.name === 'real') return wanted.name === 'double precision' ? 'other text' : null;
  if (old.name === 'numeric') return wanted.name === 'numeric' ? widerNumeric(old.limits, wanted.limits) : null;
  if (ofCharacters.has(old.name) && ofCharacters.has(wanted.name)) return longer(old.limits, wanted.limits) ? 'same text' : null;
  if (old.name !== wanted.name) return null;
  if (old.name === 'character') return longer(old.limits, wanted.limits) ? 'other text' : null;
  return limited.has(old.name) && longer(old.limits, wanted.limits) ? 'same text' : null;
}

/** Whether a column of a storage can follow its origin's to a type. One taken as text has every type; one of a domain that stands for another type has that one. */
export function mayFollow({ type, originType }: { readonly type: string; readonly originType: string }, now: string): boolean {
  return type === originType && widening(originType, now) !== null;
}

/** A column that was asked for as text, whatever type it has. */
export const isAsText = ({ type, originType }: { readonly type: string; readonly originType: string }): boolean =>
  type === 'text' && originType !== 'text';

/** Whether ALTER TABLE .. TYPE, from a type to another, leaves every value as it is written. */
export function keepsText(from: string, to: string): boolean {
  const [old, wanted] = [parsed(from), parsed(to)];
  const isCastTruly = ofCharacters.has(wanted.name) && !wanted.isArray && !(old.isArray || written.has(old.name));
  return widening(from, to) === 'same text' || (isCastTruly && wanted.limits.length === 0);
}

/** Types that a cast to text writes otherwise than their output function: `true` for `t`, no blanks at the end. */
const written: ReadonlySet<string> = new Set(['boolean', 'character', '"char"']);

/** Digits of the largest value. */
const integerDigits: Readonly<Record<string, number>> = { smallint: 5, integer: 10, bigint: 19 };
const ofCharacters: ReadonlySet<string> = new Set(['character varying', 'text']);
/** Types with a limit that only cuts: length, or digits of a second. */
const limited: ReadonlySet<string> = new Set([
  'bit varying',
  'interval',
  ...['timestamp', 'time'].flatMap((name) => [`${name} with time zone`, `${name} without time zone`]),
]);

/** The new limit is none, or no less. */
const longer = ([old]: readonly number[], [wanted]: readonly number[]): boolean =>
  wanted === undefined || (old !== undefined && wanted >= old);

function widerNumeric([precision, scale = 0]: readonly number[], [wider, moreScale = 0]: readonly number[]): Widening | null {
  if (wider === undefined) return 'same text';
  if (precision === undefined || moreScale < scale || wider - moreScale < precision - scale) return null;
  return moreScale === scale ? 'same text' : 'other text';
}

interface ParsedType {
  readonly name: string;
  readonly limits: readonly number[];
  readonly isArray: boolean;
}

/** Names of users' types come with their schema, and are no others than themselves. */
function parsed(type: string): ParsedType {
  const isArray = type.endsWith('[]');
  const element = isArray ? type.slice(0, -2) : type;
  const [, first = element, limits = '', rest = ''] = /^([a-z ]+)\((-?\d+(?:,-?\d+)?)\)( with(?:out)? time zone)?$/.exec(element) ?? [];
  return { name: first + rest, limits: limits === '' ? [] : limits.split(',').map(Number), isArray };
}
