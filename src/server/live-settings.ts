/**
 * The settings of the proxy while Millrace runs.
 * Invariant: what is current was read whole and checked; a file that cannot be used changes nothing. What only a restart can change stays
 * as it was at the start, and is named when it is asked to change.
 */
import { findSetting, fixedSettings, parseSetting } from '../proxy-setting-names.ts';
import { type LoadedProxy, loadProxy, type ProxySource } from '../proxy-settings.ts';
import type { ProxySettings } from '../wire/pool/settings.ts';

export class LiveSettings {
  readonly #source: ProxySource;
  readonly #start: LoadedProxy;
  #loaded: LoadedProxy;
  #current: ProxySettings;

  constructor(loaded: LoadedProxy, source: ProxySource) {
    this.#source = source;
    this.#start = loaded;
    this.#loaded = loaded;
    this.#current = loaded.settings;
  }

  get current(): ProxySettings {
    return this.#current;
  }

  /** Files and places as given. */
  get given(): Readonly<Record<string, string>> {
    return this.#loaded.given;
  }

  /** Reads everything again; settings made by `set` are forgotten. Returns warnings; throws what is wrong, with nothing changed. */
  reload(): readonly string[] {
    const loaded = loadProxy(this.#source);
    const warnings = [...loaded.warnings];
    const start = this.#start;
    const stays = (name: string, changed: boolean): void => {
      if (changed) warnings.push(`${name} was changed and takes effect when Millrace is started again`);
    };
    for (const name of ['listen_addr', 'listen_port']) stays(name, loaded.given[name] !== start.given[name]);
    stays('admin_database', loaded.settings.adminDatabase !== start.settings.adminDatabase);
    const fixed = Object.fromEntries(Object.entries(start.given).filter(([name]) => fixedSettings.has(name)));
    const given = Object.fromEntries(Object.entries(loaded.given).filter(([name]) => !fixedSettings.has(name)));
    this.#loaded = { ...loaded, given: { ...given, ...fixed } };
    this.#current = { ...loaded.settings, adminDatabase: start.settings.adminDatabase };
    return warnings;
  }

  /** Changes one setting until the next reload. Throws what is wrong with it. */
  set(name: string, value: string): void {
    const setting = findSetting(name);
    if (fixedSettings.has(name)) throw new Error(`"${name}" cannot be changed while Millrace runs`);
    if (setting === undefined) throw new Error(`"${name}" is not a setting that SET knows`);
    try {
      this.#current = parseSetting(this.#current, setting, value);
    } catch (error) {
      throw new Error(`${name} = "${value}": ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
  }
}
