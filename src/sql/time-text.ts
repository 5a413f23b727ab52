/**
 * Dates and times as Postgres writes them with DateStyle ISO, taken apart.
 * Invariant: a value is read exactly or not at all; infinity, and what another style writes, gives undefined.
 */

const MICROS_PER_DAY = 86_400_000_000n;

/** `2024-02-29` or `0044-03-15 BC`: days since 1970-01-01. */
export function epochDays(text: string): number | undefined {
  const parts = /^(\d{4,})-(\d\d)-(\d\d)( BC)?$/.exec(text);
  return parts === null ? undefined : daysOf(parts[1], parts[2], parts[3], parts[4]);
}

/** `2024-02-29 12:34:56.789012+02:30`, with or without zone and era: microseconds since 1970, in UTC. */
export function epochMicros(text: string): bigint | undefined {
  const parts = /^(\d{4,})-(\d\d)-(\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?$/.exec(text);
  const [, year, month, day, time = '', sign, hours, minutes, seconds, era] = parts ?? [];
  const micros = timeMicros(time);
  if (parts === null || micros === undefined) return undefined;
  const offset = (Number(hours ?? 0) * 3600 + Number(minutes ?? 0) * 60 + Number(seconds ?? 0)) * (sign === '-' ? -1 : 1);
  return BigInt(daysOf(year, month, day, era)) * MICROS_PER_DAY + BigInt(micros) - BigInt(offset) * 1_000_000n;
}

/** `12:34:56.789`: microseconds since midnight. */
export function timeMicros(text: string): number | undefined {
  const parts = /^(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?$/.exec(text);
  if (parts === null) return undefined;
  const [, hours, minutes, seconds, fraction = ''] = parts;
  return (Number(hours) * 3600 + Number(minutes) * 60 + Number(seconds)) * 1_000_000 + Number(fraction.padEnd(6, '0'));
}

function daysOf(year: string | undefined, month: string | undefined, day: string | undefined, era: string | undefined): number {
  // There is no year 0: 1 BC comes before 1 AD.
  const astronomical = era === undefined ? Number(year) : 1 - Number(year);
  const shifted = Number(month) <= 2 ? astronomical - 1 : astronomical;
  const era400 = Math.floor(shifted / 400);
  const yearOfEra = shifted - era400 * 400;
  const dayOfYear = Math.floor((153 * ((Number(month) + 9) % 12) + 2) / 5) + Number(day) - 1;
  const dayOfEra = yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear;
  return era400 * 146_097 + dayOfEra - 719_468;
}
