/**
 * Prepared statements that outlive the server connection they were prepared on.
 * Invariant: a name of a client means the statement the client prepared, whichever connection carries it out; names of different clients
 * never meet. A statement keeps its client's name on the server where it can, so that messages nearly always pass unchanged.
 */

import { Request } from '../tags.ts';

/** A statement: what follows the name in Parse (text, parameter types). Two of the same content have the same key. */
export interface Prepared {
  readonly key: string;
  readonly tail: Buffer;
}

/** `tail` may be memory that is used again. */
export function prepared(tail: Buffer): Prepared {
  return { key: tail.toString('latin1'), tail: Buffer.from(tail) };
}

/** Names of Millrace's own conversations: never another client's, prepared and closed in one go. */
export function isReserved(name: string): boolean {
  return name.startsWith('__millrace');
}

/**
 * Whether a statement whose tables have changed may be prepared anew for a Bind (its parameters begin at `at`, it ends at `end`), so that the client
 * does not hear of it. What the server makes of parameters and columns may be another type then. So the client has to be told the columns: it asks for
 * them right behind; and nothing of its parameters may rest on what it was told of their types: they are text, or of types that it named itself.
 * Otherwise the server has its say.
 */
export function mayPrepareAnew(bytes: Buffer, at: number, end: number, { tail }: Prepared): boolean {
  if (end >= bytes.length || bytes[end] !== Request.describe || at + 4 > end) return false;
  const formats = bytes.readUInt16BE(at);
  const valuesAt = at + 2 + 2 * formats;
  if (valuesAt + 2 > end) return false;
  let allText = true;
  for (let n = 0; n < formats; n++) allText &&= bytes.readUInt16BE(at + 2 + 2 * n) === 0;
  if (allText) return true;
  const typesAt = tail.indexOf(0) + 1;
  if (tail.length < typesAt + 2) return false;
  const types = tail.readUInt16BE(typesAt);
  if (tail.length < typesAt + 2 + 4 * types) return false;
  for (let n = 0; n < types; n++) if (tail.readUInt32BE(typesAt + 2 + 4 * n) === 0) return false;
  return types >= bytes.readUInt16BE(valuesAt);
}

interface Placed {
  statement: Prepared;
  used: number;
}

/** In front of a key that nobody asks for: only the empty text begins with its end. */
const outdatedMark = '\0';

/** What a server connection has prepared, beyond the unnamed statement. */
export class ServerStatements {
  readonly #byName = new Map<string, Placed>();
  readonly #byKey = new Map<string, string>();
  /** As #byKey, of statements that were prepared before their tables changed. */
  readonly #outdated = new Map<string, string>();
  #clock = 0;
  #counter = 0;

  get size(): number {
    return this.#byName.size;
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  /** Where the statement is, undefined when it is not there for certain. Counts as a use. */
  find(statement: Prepared): string | undefined {
    const name = this.#byKey.get(statement.key);
    if (name === undefined) return undefined;
    const placed = this.#byName.get(name);
    if (placed !== undefined) placed.used = ++this.#clock;
    return name;
  }

  /** Whether `name` holds just this statement: then its messages need no change. */
  holds(name: string, statement: Prepared): boolean {
    const placed = this.#byName.get(name);
    if (placed === undefined || (placed.statement !== statement && placed.statement.key !== statement.key)) return false;
    placed.used = ++this.#clock;
    return true;
  }

  /** Statements with such a text were prepared before their tables changed. Only `outdated` knows them from now on; their names stay taken. */
  outdate(texts: RegExp): void {
    for (const [name, placed] of this.#byName) {
      const { key, tail } = placed.statement;
      if (key.startsWith(outdatedMark) || !texts.test(key)) continue;
      if (this.#byKey.get(key) === name) this.#byKey.delete(key);
      this.#outdated.set(key, name);
      placed.statement = { key: outdatedMark + key, tail };
    }
  }

  /** Where the statement is as it was before its tables changed. */
  outdated(statement: Prepared): string | undefined {
    return this.#outdated.size === 0 ? undefined : this.#outdated.get(statement.key);
  }

  /** A name for a new statement: the wanted one when it is free. */
  freeName(wanted: string): string {
    if (wanted !== '' && !this.#byName.has(wanted)) return wanted;
    let name: string;
    do name = `millrace_${++this.#counter}`;
    while (this.#byName.has(name));
    return name;
  }

  /** Its Parse was sent. */
  add(name: string, statement: Prepared): void {
    this.#byName.set(name, { statement, used: ++this.#clock });
  }

  /** Its Parse has succeeded: from now on others may use it. */
  confirm(name: string, statement: Prepared): void {
    if (this.#byName.get(name)?.statement === statement) this.#byKey.set(statement.key, name);
  }

  remove(name: string): Prepared | undefined {
    const placed = this.#byName.get(name);
    if (placed === undefined) return undefined;
    this.#byName.delete(name);
    const { key } = placed.statement;
    if (this.#byKey.get(key) === name) this.#byKey.delete(key);
    if (key.startsWith(outdatedMark) && this.#outdated.get(key.slice(1)) === name) this.#outdated.delete(key.slice(1));
    return placed.statement;
  }

  /** The name that was not used for the longest time. */
  oldest(): string | undefined {
    let oldest: string | undefined;
    let used = Number.POSITIVE_INFINITY;
    for (const [name, placed] of this.#byName) {
      if (placed.used >= used) continue;
      used = placed.used;
      oldest = name;
    }
    return oldest;
  }

  clear(): void {
    this.#byName.clear();
    this.#byKey.clear();
    this.#outdated.clear();
  }
}
