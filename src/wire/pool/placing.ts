/**
 * Puts clients' statements on a server connection and takes them away again.
 * Invariant: what `statements` says the server holds is so once it has answered what was sent; a message without effect is taken back.
 */
import { close, message as encode } from '../encode.ts';
import { Request } from '../tags.ts';
import { Expect, type ExpectedReplies } from './expected.ts';
import type { Prepared, ServerStatements } from './prepared.ts';

/** What is known of the server connection. */
export interface ServerSide {
  readonly expected: ExpectedReplies;
  readonly statements: ServerStatements;
  /** The unnamed statement it holds, if it is a client's that is known. */
  unnamed: Buffer | null;
}

/** Makes room for a statement and enters it under a free name, which is returned. `instead`: what is to be sent. */
export function place(wanted: string, statement: Prepared, server: ServerSide, limit: number, instead: Buffer[]): string {
  const { statements } = server;
  const name = statements.freeName(wanted);
  while (statements.size >= limit) {
    const oldest = statements.oldest();
    if (oldest === undefined) break;
    evict(oldest, server, instead);
  }
  statements.add(name, statement);
  return name;
}

/** Prepares under just this name, whatever has it. */
export function prepareAs(name: string, statement: Prepared, server: ServerSide, instead: Buffer[], silent = false): void {
  if (server.statements.holds(name, statement)) return;
  evict(name, server, instead);
  server.statements.add(name, statement);
  sendParse(name, statement, server, instead, silent);
}

/** `silent`: an error of it is for nobody. */
export function sendParse(
  name: string,
  statement: Prepared,
  { expected, statements }: ServerSide,
  instead: Buffer[],
  silent = false,
): void {
  instead.push(encode(Request.parse, [Buffer.from(`${name}\0`, 'latin1'), statement.tail]));
  expected.extended(Expect.parse, true, {
    silent,
    done: () => statements.confirm(name, statement),
    undo: () => void statements.remove(name),
  });
}

/** Frees the name on the server. */
export function evict(name: string, { expected, statements }: ServerSide, instead: Buffer[]): void {
  const statement = statements.remove(name);
  if (statement === undefined) return;
  instead.push(close('S', name, 'latin1'));
  expected.extended(Expect.close, true, {
    undo: () => {
      statements.add(name, statement);
      statements.confirm(name, statement);
    },
  });
}
