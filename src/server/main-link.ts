/**
 * A worker's side of the talk with the main process: connections that it is handed, and the admin console.
 * Invariant: each question of the main process gets one answer, and each request of a console too, unless the main process is gone (then
 * so is this one).
 */
import type { Socket } from 'node:net';
import type { ParentMessage } from '../config.ts';
import type { AdminAnswer, AdminPort } from '../wire/admin/messages.ts';
import type { Worker } from '../wire/worker.ts';
import { tell } from './child-process.ts';

export interface MainLink extends AdminPort {
  /** From now on questions of the main process go to this worker. */
  serve(worker: Worker): void;
}

export function createMainLink(): MainLink {
  const waiting = new Map<number, (answer: AdminAnswer) => void>();
  let lastId = 0;
  let worker: Worker | undefined;
  process.on('message', (message: ParentMessage, connection?: Socket) => {
    switch (message.type) {
      case 'connection':
        tell({ type: 'taken' });
        if (connection !== undefined) worker?.take(connection);
        break;
      case 'answer':
        waiting.get(message.id)?.(message.answer);
        waiting.delete(message.id);
        break;
      case 'report':
        if (worker !== undefined) tell({ type: 'report', id: message.id, report: worker.report() });
        break;
      case 'command':
        worker?.command(message.command).then(
          (outcome) => tell({ type: 'outcome', id: message.id, outcome }),
          (error: unknown) =>
            tell({ type: 'outcome', id: message.id, outcome: { error: error instanceof Error ? error.message : String(error) } }),
        );
        break;
      case 'close-door':
        worker?.closeDoor(message.until);
        break;
      case 'cancel-here':
        worker?.cancelHere(message.key);
        break;
    }
  });
  return {
    serve(started) {
      worker = started;
    },
    ask: (request) =>
      new Promise((resolve) => {
        const id = ++lastId;
        waiting.set(id, resolve);
        tell({ type: 'ask', id, request });
      }),
  };
}
