/**
 * An engine's way to have statements wait in the proxy workers.
 * Invariant: whoever asks is not kept waiting for long, whether or not anybody obeys.
 */
import type { ParentMessage } from '../config.ts';
import type { HoldStatements } from '../migration/hold.ts';
import { tell } from './child-process.ts';

/** The main process answers sooner, unless it is busy. */
const patience = 40;

export function createHoldLink(): HoldStatements {
  const waiting = new Map<number, () => void>();
  let lastId = 0;
  process.on('message', (message: ParentMessage) => {
    if (message.type === 'held') waiting.get(message.id)?.();
  });
  return async (names, unknown, ms) => {
    const id = ++lastId;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, patience);
      waiting.set(id, () => {
        clearTimeout(timer);
        resolve();
      });
      tell({ type: 'hold', id, names, unknown, ms });
    });
    waiting.delete(id);
    return (changed) => tell({ type: 'let-go', id, changed: changed ? names : [] });
  };
}
