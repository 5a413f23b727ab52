/**
 * The life of a child process, seen from inside.
 * Invariant: it does what the main process says and nothing the terminal says, and it does not outlive the main process.
 */
import type { ChildMessage, ParentMessage } from '../config.ts';

export interface ChildJob {
  /** Finishes what is under way. The process exits afterwards. */
  stop(): Promise<void>;
}

/** Tells the main process something; nothing when that is gone. */
export function tell(message: ChildMessage): void {
  if (process.connected) process.send?.(message, undefined, {}, () => {});
}

/** Ends the process because of an error, which the main process is told. */
export function die(error: unknown): void {
  tell({ type: 'fatal', message: error instanceof Error ? error.message : String(error) });
  // Left to the event loop, so that the message gets out.
  setTimeout(() => process.exit(1), 50);
}

/** Waits for the configuration, runs `job` with it, and ends the process when told to or when the main process is gone. */
export function runChild<Config>(job: (config: Config) => Promise<ChildJob>): void {
  // Ctrl-C and a service manager signal every process of the group: the main process decides in which order things end.
  process.on('SIGINT', () => {});
  process.on('SIGTERM', () => {});
  process.on('SIGHUP', () => {});
  process.on('disconnect', () => process.exit(0));
  let running: Promise<ChildJob> | undefined;
  process.on('message', (message: ParentMessage) => {
    if (message.type === 'config' && running === undefined) {
      running = job(message.config as Config);
      running.catch(die);
    } else if (message.type === 'drain') {
      Promise.resolve(running)
        .then((started) => started?.stop())
        .then(
          () => process.exit(0),
          () => process.exit(1),
        );
    }
  });
  tell({ type: 'hello' });
}
