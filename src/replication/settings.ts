/**
 * Session settings that decide how a value is written as text.
 * Invariant: every session that writes or reads replicated values as text uses pinnedSettings, so that a value has one spelling everywhere.
 */

/** For origin and upstream sessions alike. */
export const pinnedSettings: Readonly<Record<string, string>> = {
  client_encoding: 'UTF8',
  DateStyle: 'ISO, YMD',
  IntervalStyle: 'postgres',
  TimeZone: 'UTC',
  extra_float_digits: '3',
  bytea_output: 'hex',
  lc_monetary: 'C',
  xmloption: 'content',
};

/**
 * For origin sessions: pinnedSettings, and names of other objects (regclass and kin) always written with their schema.
 * row_security off turns a silently filtered copy into an error.
 */
export const originSettings: Readonly<Record<string, string>> = { ...pinnedSettings, search_path: '', row_security: 'off' };
