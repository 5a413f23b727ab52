/**
 * Keeps one child process running.
 * Invariant: at any time there is at most one process of a kind supervised here, and none after stop() has resolved.
 */
import type { ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import type { ChildMessage, EngineConfig, ParentMessage, WorkerConfig } from '../config.ts';
import type { Logger } from '../log.ts';

export interface Supervised {
  readonly name: string;
  /** Whether the process has said that it does its job. */
  isReady(): boolean;
  pid(): number | undefined;
  /** The last samples the process sent; empty while there is none. */
  metrics(): Readonly<Record<string, number>>;
  /** How often the process ended by itself. */
  restarts(): number;
  /** Resolves when the process is ready for the first time. */
  readonly started: Promise<void>;
  /** Lets the process finish what it does, and ends it after `patience` ms. */
  stop(patience: number): Promise<void>;
  /** Whether the message was sent: false when there is no process that does its job. */
  tell(message: ParentMessage): boolean;
  /**
   * Hands it a connection, which is not to be used here any more. False when there is no process that does its job.
   * `settled`: it says that it has it, or it has ended, and the connection with it.
   */
  take(connection: Socket, settled: () => void): boolean;
  /** Ends the process now. */
  kill(): void;
}

export interface SuperviseOptions {
  /** For logs: "worker 1", "engine of shop". */
  readonly name: string;
  readonly spawn: () => ChildProcess;
  /** Sent over IPC, never on the command line: it holds passwords. Asked at each start. */
  readonly config: () => WorkerConfig | EngineConfig;
  readonly log: Logger;
  readonly onMessage?: (message: ChildMessage) => void;
  /** The process has ended, by itself or not. */
  readonly onEnd?: () => void;
}

const shortestWait = 200;
const longestWait = 5_000;
/** A process that ran this long was well: the next failure starts over with the shortest wait. */
const wellAfter = 30_000;

/** Starts a child process and starts it again whenever it ends, after 200 ms at first and up to 5 s when it keeps failing. */
export function supervise({ name, spawn, config, log, onMessage, onEnd }: SuperviseOptions): Supervised {
  let child: ChildProcess | undefined;
  let ready = false;
  let samples: Readonly<Record<string, number>> = {};
  let stopping = false;
  let wait = shortestWait;
  let restarts = 0;
  let timer: NodeJS.Timeout | undefined;
  let announce: () => void = () => {};
  const handing: (() => void)[] = [];
  const started = new Promise<void>((resolve) => {
    announce = resolve;
  });

  const start = (): void => {
    const born = Date.now();
    const running = spawn();
    child = running;
    running.on('message', (message: ChildMessage) => {
      if (message.type === 'hello') send(running, { type: 'config', config: config() });
      else if (message.type === 'ready') {
        ready = true;
        announce();
      } else if (message.type === 'metrics') samples = message.values;
      else if (message.type === 'taken') handing.shift()?.();
      if (message.type === 'fatal' && !stopping) log.error(`${name}: ${message.message}`);
      onMessage?.(message);
    });
    let over = false;
    const ended = (how: string): void => {
      if (over) return;
      over = true;
      child = undefined;
      ready = false;
      samples = {};
      for (const settled of handing.splice(0)) settled();
      onEnd?.();
      if (stopping) return;
      restarts++;
      wait = Date.now() - born > wellAfter ? shortestWait : Math.min(longestWait, restarts === 1 ? shortestWait : wait * 2);
      log.warn({ restartInMs: wait }, `${name} ended unexpectedly (${how})`);
      timer = setTimeout(start, wait);
    };
    running.once('exit', (code, signal) => ended(signal ?? `exit code ${code}`));
    running.on('error', (error) => {
      if (running.pid === undefined) ended(error.message);
    });
  };
  start();

  return {
    name,
    started,
    isReady: () => ready,
    pid: () => child?.pid,
    metrics: () => samples,
    restarts: () => restarts,
    kill() {
      stopping = true;
      clearTimeout(timer);
      child?.kill('SIGKILL');
    },
    tell(message) {
      if (child === undefined || !ready) return false;
      send(child, message);
      return true;
    },
    take(connection, settled) {
      if (child === undefined || !ready || stopping || !child.connected) return false;
      // Kept open until then: what Node closes by itself once it has been received stays open for ever when the receiver is killed.
      handing.push(() => {
        connection.destroy();
        settled();
      });
      child.send({ type: 'connection' } satisfies ParentMessage, connection, { keepOpen: true }, () => {});
      return true;
    },
    async stop(patience) {
      stopping = true;
      clearTimeout(timer);
      const running = child;
      if (running === undefined || running.exitCode !== null || running.signalCode !== null) return;
      await new Promise<void>((resolve) => {
        const force = setTimeout(() => {
          log.warn(`${name} did not finish in ${patience} ms and is ended`);
          running.kill('SIGKILL');
        }, patience);
        running.once('exit', () => {
          clearTimeout(force);
          resolve();
        });
        send(running, { type: 'drain' });
      });
    },
  };
}

function send(child: ChildProcess, message: ParentMessage): void {
  // A child that is just dying cannot be told anything; its exit is handled where it is noticed.
  if (child.connected) child.send(message, () => {});
}
