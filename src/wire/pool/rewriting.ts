/**
 * A client's messages on their way to a pooled server connection.
 * Invariant: what the server receives means to it what the client meant, wherever the client's statements were prepared; every message is
 * booked in the server's ExpectedReplies; messages that need no change are passed on without being copied.
 */
import { close, message as encode, parseComplete, sync } from '../encode.ts';
import { Request } from '../tags.ts';
import { Expect, type Expectation, type ExpectedReplies } from './expected.ts';
import { type SessionEffect, sessionEffects } from './pin.ts';
import { isReserved, type Prepared, prepared, type ServerStatements } from './prepared.ts';

/** The prepared statements of a client, kept between its transactions. The unnamed one as what follows the name in Parse. */
export interface ClientStatements {
  readonly named: Map<string, Prepared>;
  unnamed: Buffer | null;
}

/** What is known of the server connection. */
export interface ServerSide {
  readonly expected: ExpectedReplies;
  readonly statements: ServerStatements;
  /** The unnamed statement it holds, if it is a client's that is known. */
  unnamed: Buffer | null;
}

export interface RewritingHooks {
  /** What the text of a Query or Parse does to its session; called before it is sent. */
  effect(effect: SessionEffect): void;
  /** The client takes its leave; the server is not told. */
  terminate(): void;
}

/** An empty text, which can be prepared in a failed transaction too. */
const standIn = prepared(Buffer.alloc(3));
const closeComplete = Buffer.from([0x33, 0, 0, 0, 4]);
const statementKind = 0x53;
/** As in the request walker: the beginning of a longer text has to do. */
const wholeText = 1_048_576;
const prefixOfLongText = 65_536;
const longestName = 65_536;
/** A longer unnamed statement is not remembered from one transaction to the next. */
const longestUnnamed = 262_144;

const Step = { pass: 0, wait: 1, replace: 2 } as const;

export class RequestRewriter {
  readonly #client: ClientStatements;
  readonly #hooks: RewritingHooks;
  /** How many statements a server keeps. */
  readonly #limit: () => number;
  /** Bytes still to come of a message whose beginning was sent. */
  #remaining = 0;
  /** The beginning of a message that could not be judged yet. */
  #carry: Buffer | null = null;
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

  /** What is to be sent for `chunk`; views of `chunk` where nothing is changed. */
  rewrite(chunk: Buffer, server: ServerSide): readonly Buffer[] {
    const bytes = this.#carry === null ? chunk : Buffer.concat([this.#carry, chunk]);
    this.#carry = null;
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
      if (step === Step.wait) {
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
    let about: Expectation | undefined;
    if (!expected.unbooked) {
      const effects = sessionEffects(bytes, at + 5, Math.min(next, bytes.length));
      if (effects.length > 0) about = this.#effects(effects, server, instead, true);
      // A simple Query drops the unnamed statement.
      this.#client.unnamed = null;
      server.unnamed = null;
    }
    expected.query(Expect.query, false, about);
    return instead.length === 0 ? Step.pass : this.#replace(instead, at);
  }

  /**
   * Sees to it that the names of prepared statements in SQL mean the client's own.
   * Returns what is to be done if a simple Query fails; nothing when that makes no difference.
   */
  #effects(effects: readonly SessionEffect[], server: ServerSide, instead: Buffer[], simple: boolean): Expectation | undefined {
    const { named } = this.#client;
    const { expected, statements } = server;
    const undos: (() => void)[] = [];
    for (const effect of effects) {
      this.#hooks.effect(effect);
      if (effect.kind !== 'statement') continue;
      const { name, word } = effect;
      const own = named.get(name);
      let there = own;
      if (own === undefined || !statements.holds(name, own)) {
        this.#evict(name, server, instead);
        if (own !== undefined && word === 'execute') {
          this.#prepare(name, own, server, instead, simple);
          // Should it fail the server must not skip the Query.
          if (simple) instead.push(sync);
          if (simple) expected.sync(true);
        } else if (own !== undefined) {
          there = standIn;
          this.#prepare(name, standIn, server, instead);
        }
      }
      if (word !== 'deallocate' || own === undefined || there === undefined) continue;
      const left = there;
      named.delete(name);
      statements.remove(name);
      undos.push(() => {
        named.set(name, own);
        statements.add(name, left);
      });
    }
    if (undos.length === 0) return undefined;
    if (!simple) {
      // It is carried out later, if at all, and the server will know.
      this.#hooks.effect({ kind: 'pin', reason: 'DEALLOCATE' });
      return undefined;
    }
    return {
      undo: () => {
        for (const undo of undos) undo();
        // How far it got only this server knows.
        this.#hooks.effect({ kind: 'pin', reason: 'DEALLOCATE failed' });
      },
    };
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
    const effects = sessionEffects(bytes, nameEnd + 1, there);
    if (effects.length > 0) {
      const instead: Buffer[] = [];
      this.#effects(effects, server, instead, false);
      if (instead.length > 0) {
        const step = this.#parseNamed(bytes, at, next, nameEnd, server);
        return step === Step.pass ? this.#replace(instead, at) : this.#replace([...instead, ...this.#instead], this.#resume);
      }
    }
    return this.#parseNamed(bytes, at, next, nameEnd, server);
  }

  #parseNamed(bytes: Buffer, at: number, next: number, nameEnd: number, server: ServerSide): number {
    const { expected, statements } = server;
    if (nameEnd === at + 5)
      return this.#parseUnnamed(bytes.subarray(nameEnd + 1, Math.min(next, bytes.length)), next, bytes.length, server);
    const name = bytes.toString('latin1', at + 5, nameEnd);
    if (isReserved(name)) {
      expected.extended(Expect.parse);
      return Step.pass;
    }
    if (next > bytes.length || this.#limit() === 0) {
      this.#hooks.effect({ kind: 'pin', reason: 'prepared statement' });
      const instead: Buffer[] = [];
      this.#evict(name, server, instead);
      expected.extended(Expect.parse);
      return instead.length === 0 ? Step.pass : this.#replace(instead, at);
    }
    const { named } = this.#client;
    const before = named.get(name);
    if (before !== undefined) {
      // The server shall say itself that it exists.
      const instead: Buffer[] = [];
      if (!statements.holds(name, before)) {
        this.#evict(name, server, instead);
        this.#prepare(name, before, server, instead);
      }
      expected.extended(Expect.parse);
      return instead.length === 0 ? Step.pass : this.#replace(instead, at);
    }
    const statement = prepared(bytes.subarray(nameEnd + 1, next));
    named.set(name, statement);
    if (statements.find(statement) !== undefined) {
      expected.extended(Expect.local, false, { reply: parseComplete, undo: () => void named.delete(name) });
      return this.#replace([], next);
    }
    const instead: Buffer[] = [];
    const placed = this.#place(name, statement, server, instead);
    expected.extended(Expect.parse, false, {
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
    if (next > end || tail.length > longestUnnamed) {
      this.#hooks.effect({ kind: 'pin', reason: 'long statement' });
      client.unnamed = Buffer.alloc(0);
    } else client.unnamed = Buffer.from(tail);
    server.unnamed = client.unnamed;
    server.expected.extended(Expect.parse, false, {
      undo: () => {
        client.unnamed = null;
        server.unnamed = null;
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
    const { instead, name } = this.#lookUp(bytes, portalEnd + 1, nameEnd, server);
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
    const { instead, name } = this.#lookUp(bytes, at + 6, nameEnd, server);
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
    const statement = client.named.get(name);
    client.named.delete(name);
    expected.extended(Expect.local, false, {
      reply: closeComplete,
      undo: () => {
        if (statement !== undefined) client.named.set(name, statement);
      },
    });
    return this.#replace([], next);
  }

  /** What has to be sent before a message that uses a statement, and the name to use; null when it is the client's own. */
  #lookUp(bytes: Buffer, from: number, to: number, server: ServerSide): { readonly instead: Buffer[]; readonly name: string | null } {
    const { expected, statements } = server;
    const client = this.#client;
    if (expected.unbooked) return unchanged();
    if (from === to) {
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
    if (statement !== undefined && statements.holds(name, statement)) return unchanged();
    if (isReserved(name) || this.#limit() === 0) return unchanged();
    const instead: Buffer[] = [];
    if (statement === undefined) {
      // Another client's must not be taken for it.
      this.#evict(name, server, instead);
      return { instead, name: null };
    }
    let placed = statements.find(statement);
    if (placed === undefined) {
      placed = this.#place(name, statement, server, instead);
      this.#sendParse(placed, statement, server, instead);
    }
    return { instead, name: placed === name ? null : placed };
  }

  /** Makes room for a statement and enters it under a free name. */
  #place(wanted: string, statement: Prepared, server: ServerSide, instead: Buffer[]): string {
    const { statements } = server;
    const name = statements.freeName(wanted);
    while (statements.size >= this.#limit()) {
      const oldest = statements.oldest();
      if (oldest === undefined) break;
      this.#evict(oldest, server, instead);
    }
    statements.add(name, statement);
    return name;
  }

  /** Prepares under just this name, which is free. */
  #prepare(name: string, statement: Prepared, server: ServerSide, instead: Buffer[], silent = false): void {
    server.statements.add(name, statement);
    this.#sendParse(name, statement, server, instead, silent);
  }

  #sendParse(name: string, statement: Prepared, { expected, statements }: ServerSide, instead: Buffer[], silent = false): void {
    instead.push(encode(Request.parse, [Buffer.from(`${name}\0`, 'latin1'), statement.tail]));
    expected.extended(Expect.parse, true, { silent, undo: () => void statements.remove(name) });
  }

  #evict(name: string, { expected, statements }: ServerSide, instead: Buffer[]): void {
    const statement = statements.remove(name);
    if (statement === undefined) return;
    instead.push(close('S', name, 'latin1'));
    const about: Expectation = { undo: () => statements.add(name, statement) };
    expected.extended(Expect.close, true, about);
  }
}

const nothing = { instead: [] as Buffer[], name: null };
function unchanged(): { readonly instead: Buffer[]; readonly name: string | null } {
  return nothing;
}

/** Whether enough of a message with SQL text is there to be judged. */
function isThere(bytes: Buffer, at: number, next: number): boolean {
  return next <= bytes.length || (next - at > wholeText && bytes.length - at >= prefixOfLongText);
}
