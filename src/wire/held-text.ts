/**
 * Whether what a client sends, between two transactions, may touch tables that are about to change. Pure.
 * Invariant: it is a guess that costs a few milliseconds where it is wrong, either way: a statement let through waits at Postgres's lock, one held for
 * nothing is late. So a name within a word or a literal counts as well, and nothing is parsed.
 *
 * Some requests do not say what they touch: a transaction that begins, a statement prepared earlier (in session mode nobody here has kept its text), a
 * procedure, a function call. They count when `unknown` says so, which is for a very short time only: others than those who use the tables notice it.
 */
import { Request } from './tags.ts';

export interface HeldText {
  readonly named: RegExp;
  readonly unknown: RegExp | null;
}

/** Names as they are in the catalog. `unknown`: what does not say what it touches counts, too. */
export function heldText(names: readonly string[], unknown: boolean): HeldText {
  // Bytes are looked at one by one; those of letters beyond ASCII are part of a word.
  const words = names.map((name) =>
    Buffer.from(name.replaceAll('"', '""'), 'utf8')
      .toString('latin1')
      .replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'),
  );
  return {
    named: words.length === 0 ? /(?!)/ : new RegExp(`(?<![\\w$\\x80-\\xff])(?:${words.join('|')})(?![\\w$\\x80-\\xff])`, 'i'),
    unknown: unknown ? /\b(?:begin|start|execute|call|do)\b/i : null,
  };
}

const statementKind = 0x53;
const isHeld = (text: string, { named, unknown }: HeldText): boolean => named.test(text) || unknown?.test(text) === true;

/** `chunk` begins a request. `textOf`: of a statement prepared earlier, by its name; undefined when it is not known. */
export function mayTouch(chunk: Buffer, held: HeldText, textOf: (name: string) => string | undefined): boolean {
  const end = chunk.length;
  const parsed = new Set<string>();
  const prepared = (name: string): boolean => {
    if (parsed.has(name)) return false;
    const text = textOf(name);
    return text === undefined ? held.unknown !== null : isHeld(text, held);
  };
  for (let at = 0; at < end; ) {
    // The rest comes in a moment, and can be judged no better then than it can wait.
    if (end - at < 5) return true;
    const tag = chunk[at];
    const next = at + 1 + chunk.readInt32BE(at + 1);
    if (next < at + 5) return false;
    const complete = next <= end;
    switch (tag) {
      case Request.query:
        if (!complete || isHeld(chunk.toString('latin1', at + 5, next - 1), held)) return true;
        break;
      case Request.parse: {
        const nameEnd = chunk.indexOf(0, at + 5);
        if (!complete || isHeld(chunk.toString('latin1', nameEnd + 1, textEnd(chunk, nameEnd + 1, next)), held)) return true;
        parsed.add(chunk.toString('latin1', at + 5, nameEnd));
        break;
      }
      case Request.bind: {
        if (!complete) return true;
        const from = chunk.indexOf(0, at + 5) + 1;
        if (prepared(chunk.toString('latin1', from, textEnd(chunk, from, next)))) return true;
        break;
      }
      case Request.describe:
        if (!complete) return true;
        if (chunk[at + 5] === statementKind && prepared(chunk.toString('latin1', at + 6, textEnd(chunk, at + 6, next)))) return true;
        break;
      case Request.functionCall:
        if (held.unknown !== null) return true;
        break;
    }
    at = next;
  }
  return false;
}

/** Where the string at `from` ends, within its message. */
function textEnd(chunk: Buffer, from: number, next: number): number {
  const end = chunk.indexOf(0, from);
  return end === -1 ? next : Math.min(end, next);
}
