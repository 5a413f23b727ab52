/**
 * What an engine says about statements that are to wait, passed on to the workers.
 * Invariant: an engine that has ended holds nothing, and an engine is answered whether or not every worker has obeyed.
 */
import type { ChildMessage, ParentMessage } from '../config.ts';
import type { WorkerGroup } from './worker-group.ts';

/** A worker that takes longer does not hold the engine up: its clients wait at Postgres's locks. */
const patience = 20;

export interface HoldPasser {
  received(message: ChildMessage, answer: (message: ParentMessage) => void): void;
  /** The engine's process has ended. */
  ended(): void;
}

export function passHolds(workers: Pick<WorkerGroup, 'command'>, database: string): HoldPasser {
  let lastLife = 0;
  // Ids of an engine's next life must not meet those of this one.
  const idOf = (id: number): string => `${database}\0${lastLife}\0${id}`;
  return {
    received(message, answer) {
      if (message.type === 'hold') {
        const { id, names, unknown, ms } = message;
        void workers
          .command({ command: 'hold', order: { id: idOf(id), database, names, unknown, ms } }, patience)
          .then(() => answer({ type: 'held', id }));
      } else if (message.type === 'let-go') {
        void workers.command({ command: 'let_go', database, id: idOf(message.id), changed: message.changed }, patience);
      }
    },
    ended() {
      lastLife++;
      void workers.command({ command: 'let_go', database, id: null, changed: [] }, patience);
    },
  };
}
