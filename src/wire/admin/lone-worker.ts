/** The admin console's way to the workers where there is one worker and no main process above it. Invariant: it answers as that would. */
import type { CommandOutcome, WorkerCommand, WorkerReport } from '../pool/report.ts';
import type { AdminAnswer, AdminPort } from './messages.ts';

export function loneWorker(worker: {
  report(): WorkerReport;
  command(command: WorkerCommand): Promise<CommandOutcome>;
  cancelHere(key: string): void;
}): AdminPort {
  const started = Date.now();
  const done: AdminAnswer = { answer: 'done', found: true, missing: [], warnings: [] };
  const none: AdminAnswer = { answer: 'failed', message: 'there is no main process that could do this' };
  return {
    async ask(request) {
      switch (request.ask) {
        case 'state': {
          const entry = { number: 1, pid: process.pid, ready: true, restarts: 0, report: worker.report() };
          const earlier = { at: started, stats: [] };
          return { answer: 'state', state: { workers: [entry], pausedAll: false, paused: [], disabled: [], given: {}, earlier } };
        }
        case 'command':
          return { ...done, ...(await worker.command(request.command)) };
        case 'cancel':
          worker.cancelHere(request.key);
          return done;
        default:
          return none;
      }
    },
  };
}
