/**
 * A client's messages on their way to a pooled server connection.
 * Invariant: what the server receives means to it what the client meant, wherever the client's statements were prepared; every message is
 * booked in the server's ExpectedReplies; messages that need no change are passed on without being copied. A message whose meaning hangs on
 * an answer that is still to come is held until then, with all that follows it.
 */
import { close, message as encode, flush, parseComplete } from '../encode.ts';
import { Request } from '../tags.ts';
import { Expect, type Expectation } from './expected.ts';
import { forgetsStatements, isUncertain, placeNamed } from './names-in-sql.ts';
import { type SessionEffect, sessionEffects } from './pin.ts';
import { evict, place, prepareAs, type ServerSide, sendParse } from './placing.ts';
import { isReserved, mayPrepareAnew, type Prepared, prepared } from './prepared.ts';

/** The prepared statements of a client, kept between its transactions. The unnamed one as what follows the name in Parse. */
export interface ClientStatements {
  readonly named: Map<string, Prepared>;
  unnamed: Buffer | null;
  /** One of them was prepared that drops them all. */
  forgets: boolean;
}

export interface RewritingHooks {
  /** What the text of a Query or Parse does to its session; called before it is sent. */
  effect(effect: SessionEffect): void;
  /** The client takes its leave; the server is not told. */
  terminate(): void;
}

const closeComplete = Buffer.from([0x33, 0, 0, 0, 4]);
const statementKind = 0x53;
/** As in the request walker: the beginning of a longer text has to do. */
const wholeText = 1_048_576;
const prefixOfLongText = 65_536;
const longestName = 65_536;
/** A longer unnamed statement is not remembered from one transaction to the next. */
const longestUnnamed = 262_144;

/** `wait`: for the rest of the message. `hold`: for an answer of the server. */
const Step = { pass: 0, wait: 1, replace: 2, hold: 3 } as const;

export class RequestRewriter {
  readonly #client: ClientStatements;
  readonly #hooks: RewritingHooks;
  /** How many statements a server keeps. */
  readonly #limit: () => number;
  /** Bytes still to come of a message whose beginning was sent. */
  #remaining = 0;
  /** The beginning of a message that could not be judged yet. */
  #carry: Buffer | null = null;
  #holding = false;
  /** Of the last message that was replaced: what is sent for it, and from where on the client's own bytes are. */
  #instead: Buffer[] = [];
  #resume = 0;

  constructor(client: ClientStatements, hooks: RewritingHooks, limit: () => number) {
    this.#client = client;
    this.#hooks = hooks;
    this.#limit = limit;
  }

  /** Whether a message is half sent. */
  get midMessage(): boolean {
    return this.#remaining > 0 || this.#carry !== null;
  }

  /** Bytes that wait for an answer of the server; then `rewrite` is to be called again. */
  get held(): number {
    return this.#holding ? (this.#carry?.length ?? 0) : 0;
  }

  /** What is to be sent for `chunk`; views of `chunk` where nothing is changed. */
  rewrite(chunk: Buffer, server: ServerSide): readonly Buffer[] {
    const bytes = this.#carry === null ? chunk : Buffer.concat([this.#carry, chunk]);
    this.#carry = null;
    const heldBefore = this.#holding;
    this.#holding = false;
    const end = bytes.length;
    const out: Buffer[] = [];
    let from = 0;
    let at = this.#remaining;
    this.#remaining = 0;
    while (at < end) {
      const next = end - at < 5 ? 0 : at + 1 + Math.max(4, bytes.readInt32BE(at + 1));
      const step = next === 0 ? Step.wait : this.#step(bytes, at, next, server);
      if (step === Step.pass) {
        at = next;
        continue;
      }
      if (at > from) out.push(bytes.subarray(from, at));
      if (step === Step.wait || step === Step.hold) {
        this.#holding = step === Step.hold;
        // Without a Sync the server keeps its answers.
        if (this.#holding && server.expected.batchOpen && (at > 0 || !heldBefore)) out.push(flush);
        this.#carry = Buffer.from(bytes.subarray(at));
        return out;
      }
      out.push(...this.#instead);
      from = this.#resume;
      at = next;
    }
    this.#remaining = at - end;
    if (from < end) out.push(from === 0 ? bytes : bytes.subarray(from));
    return out;
  }

  #step(bytes: Buffer, at: number, next: number, server: ServerSide): number {
    const { expected } = server;
    switch (bytes[at]) {
      case Request.query:
        return this.#query(bytes, at, next, server);
      case Request.parse:
        return this.#parse(bytes, at, next, server);
      case Request.bind:
        return this.#bind(bytes, at, next, server);
      case Request.describe:
      case Request.close:
        return this.#target(bytes, at, next, server);
      case Request.execute:
        expected.extended(Expect.execute);
        if (this.#client.forgets) expected.forgets();
        return Step.pass;
      case Request.sync:
        expected.sync();
        return Step.pass;
      case Request.functionCall:
        expected.query(Expect.functionCall);
        return Step.pass;
      case Request.copyDone:
      case Request.copyFail:
        expected.copyEnd();
        return Step.pass;
      case Request.terminate:
        this.#hooks.terminate();
        return this.#replace([], next);
      default:
        return Step.pass;
    }
  }

  #replace(instead: Buffer[], resume: number): number {
    this.#instead = instead;
    this.#resume = resume;
    return Step.replace;
  }

  #query(bytes: Buffer, at: number, next: number, server: ServerSide): number {
    const { expected } = server;
    if (!isThere(bytes, at, next)) return Step.wait;
    const instead: Buffer[] = [];
    let forgets = false;
    let about: Expectation | undefined;
    if (!expected.unbooked) {
      const effects = sessionEffects(bytes, at + 5, Math.min(next, bytes.length));
      if (effects.length > 0) {
        if (isUncertain(effects, expected)) return Step.hold;
        for (const effect of effects) this.#hooks.effect(effect);
        forgets = forgetsStatements(effects);
        about = placeNamed(effects, this.#client.named, server, instead, true, this.#hooks);
      }
      // A simple Query drops the unnamed statement.
      this.#client.unnamed = null;
      server.unnamed = null;
    }
    expected.query(Expect.query, false, about);
    if (forgets) expected.forgets();
    return instead.length === 0 ? Step.pass : this.#replace(instead, at);
  }

  #parse(bytes: Buffer, at: number, next: number, server: ServerSide): number {
    const { expected } = server;
    if (!isThere(bytes, at, next)) return Step.wait;
    const there = Math.min(next, bytes.length);
    const nameEnd = bytes.indexOf(0, at + 5);
    if (expected.unbooked || nameEnd === -1 || nameEnd >= there) {
      expected.extended(Expect.parse);
      return Step.pass;
    }
    const name = nameEnd === at + 5 ? '' : bytes.toString('latin1', at + 5, nameEnd);
    if (name !== '' && expected.uncertain(name, false)) return Step.hold;
    const effects = sessionEffects(bytes, nameEnd + 1, there);
    if (effects.length === 0) return this.#parseAs(name, bytes, at, next, nameEnd, server);
    if (isUncertain(effects, expected)) return Step.hold;
    for (const effect of effects) this.#hooks.effect(effect);
    if (forgetsStatements(effects)) this.#client.forgets = true;
    const instead: Buffer[] = [];
    placeNamed(effects, this.#client.named, server, instead, false, this.#hooks);
    const step = this.#parseAs(name, bytes, at, next, nameEnd, server);
    if (instead.length === 0) return step;
    return step === Step.pass ? this.#replace(instead, at) : this.#replace([...instead, ...this.#instead], this.#resume);
  }

  #parseAs(name: string, bytes: Buffer, at: number, next: number, nameEnd: number, server: ServerSide): number {
    const { expected, statements } = server;
    const there = Math.min(next, bytes.length);
    if (name === '') return this.#parseUnnamed(bytes.subarray(nameEnd + 1, there), next, bytes.length, server);
    if (isReserved(name)) {
      expected.extended(Expect.parse);
      return Step.pass;
    }
    if (next > bytes.length || this.#limit() === 0) {
      this.#hooks.effect({ kind: 'pin', reason: 'prepared statement' });
      const instead: Buffer[] = [];
      evict(name, server, instead);
      expected.extended(Expect.parse);
      return instead.length === 0 ? Step.pass : this.#replace(instead, at);
    }
    const { named } = this.#client;
    const before = named.get(name);
    if (before !== undefined) {
      // The server shall say itself that it exists.
      const instead: Buffer[] = [];
      prepareAs(name, before, server, instead);
      expected.extended(Expect.parse);
      return instead.length === 0 ? Step.pass : this.#replace(instead, at);
    }
    const statement = prepared(bytes.subarray(nameEnd + 1, next));
    named.set(name, statement);
    if (statements.find(statement) !== undefined) {
      expected.extended(Expect.local, false, { reply: parseComplete, statement: name, undo: () => void named.delete(name) });
      return this.#replace([], next);
    }
    const instead: Buffer[] = [];
    const placed = place(name, statement, server, this.#limit(), instead);
    expected.extended(Expect.parse, false, {
      statement: name,
      done: () => statements.confirm(placed, statement),
      undo: () => {
        named.delete(name);
        statements.remove(placed);
      },
    });
    if (placed === name) return instead.length === 0 ? Step.pass : this.#replace(instead, at);
    instead.push(encode(Request.parse, [Buffer.from(`${placed}\0`, 'latin1'), statement.tail]));
    return this.#replace(instead, next);
  }

  #parseUnnamed(tail: Buffer, next: number, end: number, server: ServerSide): number {
    const client = this.#client;
    const before = client.unnamed;
    const serverBefore = server.unnamed;
    const long = next > end || tail.length > longestUnnamed;
    if (long) this.#hooks.effect({ kind: 'pin', reason: 'long statement' });
    const statement = long ? Buffer.alloc(0) : Buffer.from(tail);
    client.unnamed = statement;
    server.unnamed = statement;
    server.expected.extended(Expect.parse, false, {
      statement: '',
      // One that was carried out and failed has taken the one before away.
      undo: (skipped) => {
        if (client.unnamed === statement) client.unnamed = skipped ? before : null;
        if (server.unnamed === statement) server.unnamed = skipped ? serverBefore : null;
      },
    });
    return Step.pass;
  }

  #bind(bytes: Buffer, at: number, next: number, server: ServerSide): number {
    const there = Math.min(next, bytes.length);
    const portalEnd = bytes.indexOf(0, at + 5);
    const nameEnd = portalEnd === -1 || portalEnd >= there ? -1 : bytes.indexOf(0, portalEnd + 1);
    if (nameEnd === -1 || nameEnd >= there) {
      if (next > bytes.length && bytes.length - at < longestName) return Step.wait;
      server.expected.extended(Expect.bind);
      return Step.pass;
    }
    const found = this.#lookUp(bytes, portalEnd + 1, nameEnd, server, next);
    if (found === null) return Step.hold;
    const { instead, name } = found;
    server.expected.extended(Expect.bind);
    if (name === null) return instead.length === 0 ? Step.pass : this.#replace(instead, at);
    const head = Buffer.allocUnsafe(portalEnd + 1 - at + name.length + 1);
    bytes.copy(head, 0, at, portalEnd + 1);
    head.write(name, portalEnd + 1 - at, 'latin1');
    head[head.length - 1] = 0;
    head.writeInt32BE(next - at - 1 + name.length - (nameEnd - portalEnd - 1), 1);
    instead.push(head);
    return this.#replace(instead, nameEnd + 1);
  }

  /** Describe and Close. */
  #target(bytes: Buffer, at: number, next: number, server: ServerSide): number {
    const { expected } = server;
    const describing = bytes[at] === Request.describe;
    const kind = describing ? Expect.describe : Expect.close;
    if (next > bytes.length && bytes.length - at < longestName) return Step.wait;
    const nameEnd = next > bytes.length ? -1 : bytes.indexOf(0, at + 6);
    if (bytes[at + 5] !== statementKind || nameEnd === -1 || nameEnd >= next || expected.unbooked) {
      expected.extended(kind);
      return Step.pass;
    }
    if (!describing) return this.#close(bytes.toString('latin1', at + 6, nameEnd), next, server);
    const found = this.#lookUp(bytes, at + 6, nameEnd, server, 0);
    if (found === null) return Step.hold;
    const { instead, name } = found;
    expected.extended(kind);
    if (name === null) return instead.length === 0 ? Step.pass : this.#replace(instead, at);
    instead.push(encode(Request.describe, [Buffer.from(`S${name}\0`, 'latin1')]));
    return this.#replace(instead, next);
  }

  /** The server keeps a named statement, for others that prepare the same. */
  #close(name: string, next: number, server: ServerSide): number {
    const client = this.#client;
    const { expected } = server;
    if (name === '') {
      client.unnamed = null;
      server.unnamed = null;
    }
    if (name === '' || isReserved(name) || this.#limit() === 0) {
      expected.extended(Expect.close);
      return Step.pass;
    }
    if (expected.uncertain(name, false)) return Step.hold;
    const statement = client.named.get(name);
    client.named.delete(name);
    expected.extended(Expect.local, false, {
      reply: closeComplete,
      statement: name,
      undo: () => {
        if (statement !== undefined) client.named.set(name, statement);
      },
    });
    return this.#replace([], next);
  }

  /**
   * What has to be sent before a message that uses a statement, and the name to use; null when that has to be waited for. `bindEnd`: of a Bind, where
   * it ends.
   */
  #lookUp(bytes: Buffer, from: number, to: number, server: ServerSide, bindEnd: number): Found | null {
    const { expected, statements } = server;
    const client = this.#client;
    if (expected.unbooked) return unchanged();
    if (from === to) {
      if (expected.uncertain('', false)) return null;
      if (server.unnamed === client.unnamed) return unchanged();
      server.unnamed = client.unnamed;
      if (client.unnamed === null) {
        expected.extended(Expect.close, true);
        return { instead: [close('S', '', 'latin1')], name: null };
      }
      expected.extended(Expect.parse, true, {
        undo: () => {
          server.unnamed = null;
        },
      });
      return { instead: [encode(Request.parse, [Buffer.of(0), client.unnamed])], name: null };
    }
    const name = bytes.toString('latin1', from, to);
    const statement = client.named.get(name);
    const known = statement !== undefined && statements.holds(name, statement);
    if (expected.uncertain(name, known)) return null;
    if (known) return unchanged();
    if (isReserved(name) || this.#limit() === 0) return unchanged();
    const instead: Buffer[] = [];
    if (statement === undefined) {
      // Another client's must not be taken for it.
      evict(name, server, instead);
      return { instead, name: null };
    }
    let placed = statements.find(statement);
    if (placed === undefined) {
      const outdated = statements.outdated(statement);
      if (outdated !== undefined) {
        if (bindEnd > 0 && !mayPrepareAnew(bytes, to + 1, bindEnd, statement))
          return { instead, name: outdated === name ? null : outdated };
        evict(outdated, server, instead);
      }
      placed = place(name, statement, server, this.#limit(), instead);
      sendParse(placed, statement, server, instead);
    }
    return { instead, name: placed === name ? null : placed };
  }
}

interface Found {
  readonly instead: Buffer[];
  /** Null when it is the client's own. */
  readonly name: string | null;
}

const nothing: Found = { instead: [], name: null };
function unchanged(): Found {
  return nothing;
}

/** Whether enough of a message with SQL text is there to be judged. */
function isThere(bytes: Buffer, at: number, next: number): boolean {
  return next <= bytes.length || (next - at > wholeText && bytes.length - at >= prefixOfLongText);
}
