/**
 * Reads PgBouncer's kind of ini file.
 * Invariant: every entry knows the file and line it stands in, so that whatever is said about it can name them. Comments begin a line
 * (`;` or `#`): a value may hold both characters. (The ini packages of npm lose the lines and cut values at `;`.)
 */

export interface IniEntry {
  readonly section: string;
  readonly name: string;
  readonly value: string;
  /** `file:line`. */
  readonly place: string;
}

/** What is wrong, with its place in front. */
export class SettingError extends Error {
  constructor(place: string, problem: string) {
    super(`${place}: ${problem}`);
    this.name = 'SettingError';
  }
}

const deepestInclude = 10;

/** The entries in the order they stand. `%include FILE` is followed by `read`, which gives the text of a file. */
export function readIni(text: string, file: string, read: (path: string) => string, depth = 0): readonly IniEntry[] {
  const entries: IniEntry[] = [];
  let section = '';
  for (const [index, raw] of text.split(/\r?\n/).entries()) {
    const line = raw.trim();
    const place = `${file}:${index + 1}`;
    if (line === '' || line.startsWith(';') || line.startsWith('#')) continue;
    const include = /^%include\s+(.+)$/.exec(line)?.[1];
    if (include !== undefined) {
      if (depth >= deepestInclude) throw new SettingError(place, 'files include each other too deeply');
      entries.push(...readIni(included(include, place, read), include, read, depth + 1));
      continue;
    }
    const header = /^\[([^\]]+)\]$/.exec(line)?.[1];
    if (header !== undefined) {
      section = header.trim().toLowerCase();
      continue;
    }
    const match = /^(?:"((?:[^"]|"")*)"|([^=\s"]+))\s*=\s*(.*)$/.exec(line);
    if (match === null) throw new SettingError(place, `"${line}" is neither [section] nor name = value`);
    const name = match[1]?.replaceAll('""', '"') ?? match[2] ?? '';
    if (section === '') throw new SettingError(place, `${name} stands in front of the first [section]`);
    entries.push({ section, name, value: match[3] ?? '', place });
  }
  return entries;
}

function included(path: string, place: string, read: (path: string) => string): string {
  try {
    return read(path);
  } catch (error) {
    throw new SettingError(place, error instanceof Error ? error.message : String(error));
  }
}

/** `pool_size=5 pool_mode='session'` as pairs; a quote within quotes is doubled. */
export function readPairs(text: string, place: string): readonly (readonly [string, string])[] {
  const pairs: (readonly [string, string])[] = [];
  const pair = /\s*([\w-]+)\s*=\s*(?:'((?:[^']|'')*)'|([^\s']*))(?=\s|$)/gy;
  let end = 0;
  for (let match = pair.exec(text); match !== null; match = pair.exec(text)) {
    end = pair.lastIndex;
    pairs.push([match[1] ?? '', match[2]?.replaceAll("''", "'") ?? match[3] ?? '']);
  }
  if (text.slice(end).trim() !== '') throw new SettingError(place, `"${text.slice(end).trim()}" is not name=value`);
  return pairs;
}

/** A userlist: lines of `"role" "secret"`, a quote doubled; what stands behind, lines that do not begin with a quote, do not count. */
export function readUserList(text: string, file: string): Readonly<Record<string, string>> {
  const users: [string, string][] = [];
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (!line.trimStart().startsWith('"')) continue;
    const match = /^\s*"((?:[^"]|"")*)"\s+"((?:[^"]|"")*)"/.exec(line);
    // The line holds a secret, so it is not shown.
    if (match === null) throw new SettingError(`${file}:${index + 1}`, 'not "role" "secret"');
    users.push([match[1]?.replaceAll('""', '"') ?? '', match[2]?.replaceAll('""', '"') ?? '']);
  }
  return Object.fromEntries(users);
}
