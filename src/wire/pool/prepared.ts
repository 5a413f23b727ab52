/**
 * Prepared statements that outlive the server connection they were prepared on.
 * Invariant: a name of a client means the statement the client prepared, whichever connection carries it out; names of different clients
 * never meet. A statement keeps its client's name on the server where it can, so that messages nearly always pass unchanged.
 */

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

interface Placed {
  readonly statement: Prepared;
  used: number;
}

/** What a server connection has prepared, beyond the unnamed statement. */
export class ServerStatements {
  readonly #byName = new Map<string, Placed>();
  readonly #byKey = new Map<string, string>();
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
    if (this.#byKey.get(placed.statement.key) === name) this.#byKey.delete(placed.statement.key);
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
  }
}
