/**
 * The settings that a client may change and take along from one server connection to another: those the server reports.
 * Invariant: two equal sets of values are the same object, so that a connection that fits is told by one comparison.
 */
import { quoteLiteral } from '../../sql/quote.ts';

/** Lower-case names as the server spells them in ParameterStatus, of those that SET may change without further ado. */
const settable: ReadonlyMap<string, string> = new Map(
  [
    'application_name',
    'client_encoding',
    'DateStyle',
    'default_transaction_read_only',
    'IntervalStyle',
    'search_path',
    'standard_conforming_strings',
    'TimeZone',
  ].map((name) => [name.toLowerCase(), name]),
);

/** The values of the parameters above that a server reports, by their spelling there. Compared by identity. */
export interface Settings {
  readonly values: ReadonlyMap<string, string>;
}

/** Whether a parameter (any case) is one that can be carried over, at a server that reports `reported`. */
export function isTracked(name: string, reported: ReadonlyMap<string, string>): boolean {
  const spelled = settable.get(name.toLowerCase());
  return spelled !== undefined && reported.has(spelled);
}

/** The spelling in ParameterStatus, undefined for what is not tracked. */
export function spelling(name: string): string | undefined {
  return settable.get(name.toLowerCase());
}

/** Beyond this many different sets the oldest are forgotten: they are then only compared value by value. */
const longestMemory = 10_000;

/** Makes equal sets identical. */
export class SettingsTable {
  readonly #known = new Map<string, Settings>();

  /** The set of the tracked among the reported parameters. */
  of(reported: ReadonlyMap<string, string>): Settings {
    const values = new Map<string, string>();
    for (const name of settable.values()) {
      const value = reported.get(name);
      if (value !== undefined) values.set(name, value);
    }
    return this.#intern(values);
  }

  /** `settings` with one value changed; unchanged when the parameter is not among them. */
  with(settings: Settings, name: string, value: string): Settings {
    const old = settings.values.get(name);
    if (old === undefined || old === value) return settings;
    return this.#intern(new Map(settings.values).set(name, value));
  }

  #intern(values: Map<string, string>): Settings {
    const key = JSON.stringify([...values]);
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const settings: Settings = { values };
    this.#known.set(key, settings);
    if (this.#known.size > longestMemory) {
      const [oldest] = this.#known.keys();
      if (oldest !== undefined) this.#known.delete(oldest);
    }
    return settings;
  }
}

/** The statements that bring a server from its settings to those of a client; '' when there is nothing to do. */
export function settingStatements(from: Settings, to: Settings): string {
  let sql = '';
  for (const [name, value] of to.values) {
    if (from.values.get(name) !== value) sql += setStatement(name, value);
  }
  return sql;
}

function setStatement(name: string, value: string): string {
  // A list with its own quotes: as one literal it would be one schema of that name.
  if (name === 'search_path') return `SELECT pg_catalog.set_config('search_path', ${quoteLiteral(value)}, false);`;
  return `SET ${name} TO ${quoteLiteral(value)};`;
}
