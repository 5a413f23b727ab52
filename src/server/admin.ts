/**
 * What consoles ask of the main process.
 * Invariant: every request is answered, and no answer waits longer than its deadline for a worker that does not answer.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { reason } from '../config-loading.ts';
import type { Logger } from '../log.ts';
import type { AdminAnswer, AdminRequest } from '../wire/admin/messages.ts';
import type { DatabaseStats, WorkerCommand } from '../wire/pool/report.ts';
import type { LiveSettings } from './live-settings.ts';
import type { CommandResult, WorkerGroup } from './worker-group.ts';

const reportDeadline = 2_000;
const commandDeadline = 5_000;
/** How often a shutdown that waits looks whether clients are left; before any, so that its answer is there first. */
const look = 200;
/** How old the numbers are that averages begin with: one to two of these. */
const statsPeriod = 60_000;

export interface AdminContext {
  readonly group: WorkerGroup;
  readonly settings: LiveSettings;
  /** Addresses and the like, for SHOW CONFIG. */
  readonly places: Readonly<Record<string, string>>;
  readonly log: Logger;
  /** No more clients from now on. */
  closeDoor(): void;
  /** Ends Millrace as SIGTERM does. */
  stop(): void;
}

export interface Admin {
  /** A console asks. */
  handle(request: AdminRequest): Promise<AdminAnswer>;
  /** Settings are read again, for SIGHUP. What comes of it is in the log. */
  reload(): Promise<AdminAnswer>;
  close(): void;
}

export function createAdmin({ group, settings, places, log, closeDoor, stop }: AdminContext): Admin {
  const none: readonly DatabaseStats[] = [];
  let earlier = { at: Date.now(), stats: none };
  let latest = earlier;
  const timer = setInterval(async () => {
    const workers = await group.reports(reportDeadline);
    earlier = latest;
    latest = { at: Date.now(), stats: workers.flatMap(({ report }) => report?.stats ?? []) };
  }, statsPeriod);
  timer.unref();

  const done = ({ found, missing, errors }: CommandResult, warnings: readonly string[] = []): AdminAnswer => ({
    answer: 'done',
    found,
    missing,
    warnings: [...warnings, ...errors],
  });
  const failed = (error: unknown): AdminAnswer => ({ answer: 'failed', message: reason(error) });
  const publish = (): Promise<CommandResult> => group.command({ command: 'reload', settings: settings.current }, commandDeadline);

  const command = async (asked: WorkerCommand, deadline: number | undefined): Promise<AdminAnswer> => {
    if (asked.command === 'pause' || asked.command === 'resume') {
      const { database } = asked;
      const paused = database === null ? group.pausedAll || group.paused.length > 0 : group.paused.includes(database);
      const what = database === null ? 'Millrace' : `database "${database}"`;
      if (asked.command === 'pause' && (group.pausedAll || (database !== null && paused))) return failed(`${what} is paused already`);
      if (asked.command === 'resume' && !paused) return failed(`${what} is not paused`);
    }
    log.info({ command: asked.command, ...('database' in asked ? { database: asked.database } : {}) }, 'told by the admin console');
    return done(await group.command(asked, deadline));
  };

  const reload = async (): Promise<AdminAnswer> => {
    let warnings: readonly string[];
    try {
      warnings = settings.reload();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      log.error(`settings stay as they were: ${message}`);
      return failed(message);
    }
    for (const warning of warnings) log.warn(warning);
    const result = await publish();
    log.info({ missing: result.missing }, 'settings were read again');
    return done(result, warnings);
  };

  const stopWhenEmpty = async (until: 'clients' | 'transactions'): Promise<void> => {
    closeDoor();
    for (let left = true; left; ) {
      // Told again each time: one that was busy starting has not heard it.
      group.tell({ type: 'close-door', until });
      await sleep(look);
      const workers = await group.reports(reportDeadline);
      left = workers.some(({ report }) => report?.clients.some(({ database }) => database !== settings.current.adminDatabase) ?? true);
    }
    stop();
  };

  return {
    reload,
    close: () => clearInterval(timer),
    async handle(request) {
      switch (request.ask) {
        case 'state': {
          const workers = await group.reports(reportDeadline);
          const { pausedAll, paused, disabled } = group;
          return { answer: 'state', state: { workers, pausedAll, paused, disabled, given: { ...settings.given, ...places }, earlier } };
        }
        case 'command': {
          const long = request.command.command === 'pause' || request.command.command === 'wait_close';
          return await command(request.command, request.deadline ?? (long ? undefined : commandDeadline));
        }
        case 'reload':
          return await reload();
        case 'set':
          try {
            settings.set(request.name, request.value);
          } catch (error) {
            return failed(error);
          }
          log.info({ setting: request.name }, 'set by the admin console');
          return done(await publish());
        case 'shutdown':
          log.info({ mode: request.mode }, 'shut down by the admin console');
          if (request.mode === 'now') setTimeout(stop, look);
          else void stopWhenEmpty(request.mode === 'wait_for_clients' ? 'clients' : 'transactions');
          return { answer: 'done', found: true, missing: [], warnings: [] };
        case 'cancel':
          group.tell({ type: 'cancel-here', key: request.key });
          return { answer: 'done', found: true, missing: [], warnings: [] };
      }
    },
  };
}
