/**
 * Prepared statements that SQL text names: PREPARE, EXECUTE, DEALLOCATE.
 * Invariant: when the server reads such a text, the name means there what it means to the client: the client's own statement, or nothing.
 */
import { sync } from '../encode.ts';
import type { Expectation, ExpectedReplies } from './expected.ts';
import type { SessionEffect } from './pin.ts';
import { evict, prepareAs, type ServerSide } from './placing.ts';
import { type Prepared, prepared } from './prepared.ts';

/** An empty text, which can be prepared in a failed transaction too. */
const standIn = prepared(Buffer.alloc(3));

/** Whether it is not known yet what one of the names will mean. */
export function isUncertain(effects: readonly SessionEffect[], expected: ExpectedReplies): boolean {
  return effects.some((effect) => effect.kind === 'statement' && expected.uncertain(effect.name, false));
}

export function forgetsStatements(effects: readonly SessionEffect[]): boolean {
  return effects.some(({ kind }) => kind === 'forget');
}

/**
 * Puts what the text names in its place on the server; `named` are the client's statements, `instead` is sent in front of the text.
 * Returns what is to be done if a simple Query fails, if anything is.
 */
export function placeNamed(
  effects: readonly SessionEffect[],
  named: Map<string, Prepared>,
  server: ServerSide,
  instead: Buffer[],
  simple: boolean,
  hooks: { effect(effect: SessionEffect): void },
): Expectation | undefined {
  const { expected, statements } = server;
  const undos: (() => void)[] = [];
  for (const effect of effects) {
    if (effect.kind !== 'statement') continue;
    const { name, word } = effect;
    const own = named.get(name);
    if (own === undefined) {
      evict(name, server, instead);
      continue;
    }
    let there = own;
    if (!statements.holds(name, own)) {
      if (word !== 'execute') there = standIn;
      const executing = simple && word === 'execute';
      prepareAs(name, there, server, instead, executing);
      if (executing) {
        // Should it fail the server must not skip the Query.
        instead.push(sync);
        expected.sync(true);
      }
    }
    if (word !== 'deallocate') continue;
    named.delete(name);
    statements.remove(name);
    undos.push(() => {
      named.set(name, own);
      statements.add(name, there);
    });
  }
  if (undos.length === 0) return undefined;
  if (!simple) {
    // It is carried out later, if at all, and the server will know.
    hooks.effect({ kind: 'pin', reason: 'DEALLOCATE' });
    return undefined;
  }
  return {
    undo: () => {
      for (const undo of undos) undo();
      // How far it got only this server knows.
      hooks.effect({ kind: 'pin', reason: 'DEALLOCATE failed' });
    },
  };
}
