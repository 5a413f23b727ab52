/**
 * The prepared statements and portals of one session that Millrace carries out itself.
 * Invariant: for each of them the upstream holds one of the same name, made from `standIn`, so that duplicate names, DEALLOCATE,
 * failed transactions and skipped messages get the upstream's own answers. Only Describe and Execute are answered here.
 * A statement that the upstream answers after Millrace's part (`upstream`) is itself what the upstream holds.
 */

import type { ExtendedStatement } from '../sql/ast.ts';
import type { Feed, FieldDescription } from '../statements/caller-session.ts';
import type { PortalStream } from './row-stream.ts';
import { Request } from './tags.ts';

/** Harmless, returns nothing, takes no snapshot, and is refused in a failed transaction as any statement is. */
export const placeholder = 'UNLISTEN "__millrace"';

/** What the upstream holds for a statement of ours. Only EXECUTE in SQL can run it, and must not seem to have done something. */
export const standIn = `DO $$BEGIN
  RAISE feature_not_supported USING MESSAGE = 'a prepared statement that Millrace carries out cannot be run by EXECUTE',
    HINT = 'Run it by the protocol (Bind and Execute), or send its text.';
END$$`;

export interface LocalStatement {
  readonly statement: ExtendedStatement;
  readonly text: string;
  readonly fields: readonly FieldDescription[] | null;
  /** Types of its parameters when the upstream holds the statement itself, and answers once Millrace has done its part; else null. */
  readonly upstream: { readonly types: readonly number[] } | null;
}

export interface LocalPortal {
  readonly statement: LocalStatement;
  /** As in Bind: none (all text), one for all columns, or one a column. */
  readonly formats: readonly number[];
  /** Formats and values of its parameters. */
  readonly parameters: Buffer;
  /** Encoded rows that Execute with a row limit has left for the next one. */
  rest: readonly Buffer[] | null;
  /** Rows that come bit by bit. */
  stream: PortalStream | null;
  done: boolean;
  /** Of its CommandComplete. */
  tag: string;
}

export class LocalNames {
  readonly statements = new Map<string, LocalStatement>();
  readonly portals = new Map<string, LocalPortal>();
  /** Cursors over subscriptions. */
  readonly cursors = new Map<string, Feed>();

  /** False in nearly every session: then nobody looks at names. */
  get any(): boolean {
    return this.statements.size > 0 || this.portals.size > 0 || this.cursors.size > 0;
  }

  /** Portals and cursors end with it. */
  transactionEnded(): void {
    if (!this.any) return;
    this.forgetPortals();
    for (const cursor of this.cursors.values()) void cursor.close(null);
    this.cursors.clear();
  }

  forgetPortals(): void {
    for (const portal of this.portals.values()) portal.stream?.close();
    this.portals.clear();
  }

  forgetPortal(name: string): void {
    this.portals.get(name)?.stream?.close();
    this.portals.delete(name);
  }

  /** A simple Query drops both unnamed ones. */
  forgetUnnamed(): void {
    if (!this.any) return;
    this.statements.delete('');
    this.forgetPortal('');
  }

  /** 0: the message concerns no local name, 1: it does, 2: its names are not all in [start, end). */
  mentions(tag: number, chunk: Buffer, start: number, end: number): number {
    switch (tag) {
      case Request.parse:
        return this.#isLocal(this.statements, chunk, start, end);
      case Request.execute:
        return this.#isLocal(this.portals, chunk, start, end);
      case Request.bind: {
        const portal = this.#isLocal(this.portals, chunk, start, end);
        return portal === 0 ? this.#isLocal(this.statements, chunk, chunk.indexOf(0, start) + 1, end) : portal;
      }
      case Request.describe:
      case Request.close:
        if (start >= end) return 2;
        return this.#isLocal(chunk[start] === 0x53 ? this.statements : this.portals, chunk, start + 1, end);
      default:
        return 0;
    }
  }

  #isLocal(names: ReadonlyMap<string, unknown>, chunk: Buffer, start: number, end: number): number {
    const stop = chunk.indexOf(0, start);
    if (stop === -1 || stop >= end) return 2;
    return names.size > 0 && names.has(chunk.toString('latin1', start, stop)) ? 1 : 0;
  }
}
