/**
 * Carries out console commands.
 * Invariant: a role that may only look changes nothing; a command that was cancelled has no effect that lasts, as far as it can be undone
 * (PAUSE is followed by RESUME).
 */
import type { ServerAddress } from '../../config.ts';
import { millraceError, type NoticeFields } from '../../errors.ts';
import { version } from '../../version.ts';
import type { WorkerCommand } from '../pool/report.ts';
import type { ProxySettings } from '../pool/settings.ts';
import { type ConsoleCommand, variables } from './commands.ts';
import type { AdminAnswer, AdminPort, AdminRequest } from './messages.ts';
import { columns, rows, type TableColumn, type Value } from './tables.ts';

export interface ConsoleResult {
  readonly tag: string;
  /** null: no rows are sent, not even none. */
  readonly columns: readonly TableColumn[] | null;
  readonly rows: readonly (readonly Value[])[];
  readonly notices: readonly NoticeFields[];
}

/** admin: everything; stats: SHOW. */
export type ConsoleRight = 'admin' | 'stats';

export interface RunnerContext {
  readonly user: string;
  readonly right: ConsoleRight;
  readonly port: AdminPort;
  readonly upstream: ServerAddress;
  settings(): ProxySettings;
}

/** What the console lets a role do; null: nothing. With no role named in the settings it is for the role Millrace itself uses. */
export function rightOf(user: string, settings: ProxySettings, upstream: ServerAddress): ConsoleRight | null {
  const { adminUsers, statsUsers } = settings;
  if (adminUsers.includes(user)) return 'admin';
  if (statsUsers.includes(user)) return 'stats';
  return adminUsers.length === 0 && statsUsers.length === 0 && user === upstream.user ? 'admin' : null;
}

const help = `
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION|STATE
\tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|WORKERS
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <id>
\tWAIT_CLOSE [<db>]
\tSHUTDOWN [WAIT_FOR_CLIENTS|WAIT_FOR_SERVERS]`;

const note = (message: string, severity: 'NOTICE' | 'WARNING' = 'NOTICE'): NoticeFields => ({
  severity,
  code: severity === 'NOTICE' ? '00000' : '01000',
  message,
});

/** The columns a command answers with, without carrying it out. */
export function columnsOf(command: ConsoleCommand): readonly TableColumn[] | null {
  switch (command.type) {
    case 'show':
      return command.what === 'HELP' ? null : columns[command.what];
    case 'variable':
      return [{ name: command.name, type: 'text' }];
    case 'select':
      return [{ name: command.column, type: command.kind }];
    default:
      return null;
  }
}

/** Rejects with a MillraceError. `signal`: the client cancels, or is gone. */
export async function runCommand(command: ConsoleCommand, context: RunnerContext, signal: AbortSignal): Promise<ConsoleResult> {
  const answered = (tag: string, rows: readonly (readonly Value[])[], notices: readonly NoticeFields[] = []): ConsoleResult => ({
    tag,
    columns: columnsOf(command),
    rows,
    notices,
  });
  switch (command.type) {
    case 'show': {
      const { what } = command;
      if (what === 'HELP') return answered('SHOW', [], [{ ...note('Console usage'), detail: help }]);
      const { port, upstream } = context;
      const answer = await ask(port, { ask: 'state' }, signal);
      if (answer.answer !== 'state') throw new Error('the main process has not answered what was asked');
      const { state } = answer;
      const table = rows(what, { state, settings: context.settings(), upstream, now: Date.now() });
      return answered(
        'SHOW',
        table,
        state.workers.flatMap(({ number, report }) => (report === null ? missing(number) : [])),
      );
    }
    case 'variable':
      return answered('SHOW', [[variables[command.name.toLowerCase()] ?? '']]);
    case 'select':
      return answered('SELECT 1', [[valueAsked(command.value, context)]]);
    case 'nothing':
      return answered(command.tag, []);
    case 'reload':
      return answered('RELOAD', [], await tell({ ask: 'reload' }, context, signal));
    case 'set':
      return answered('SET', [], await tell({ ask: 'set', name: command.name, value: command.value }, context, signal));
    case 'shutdown':
      return answered('SHUTDOWN', [], await tell({ ask: 'shutdown', mode: command.mode }, context, signal));
    case 'worker':
      return answered(command.tag, [], await tellWorkers(command.command, context, signal));
  }
}

async function tellWorkers(command: WorkerCommand, context: RunnerContext, signal: AbortSignal): Promise<readonly NoticeFields[]> {
  if ('database' in command && command.database === context.settings().adminDatabase) {
    throw millraceError('console_command_failed', { message: `the admin console "${command.database}" is not a database` });
  }
  try {
    return await tell({ ask: 'command', command }, context, signal);
  } catch (error) {
    if (signal.aborted && command.command === 'pause') {
      void context.port.ask({ ask: 'command', command: { command: 'resume', database: command.database } });
    }
    throw error;
  }
}

/** What is to be said of it; what did not work is thrown. */
async function tell(request: AdminRequest, { user, right, port }: RunnerContext, signal: AbortSignal): Promise<readonly NoticeFields[]> {
  if (right !== 'admin') throw millraceError('console_command_not_allowed', { role: user });
  const answer = await ask(port, request, signal);
  if (answer.answer !== 'done') throw new Error('the main process has not answered what was asked');
  if (request.ask === 'command' && request.command.command === 'kill_client' && !answer.found) {
    throw millraceError('console_command_failed', { message: `client ${request.command.id} not found` });
  }
  return [...answer.warnings.map((warning) => note(warning, 'WARNING')), ...answer.missing.flatMap(missing)];
}

async function ask(port: AdminPort, request: AdminRequest, signal: AbortSignal): Promise<AdminAnswer> {
  const cancelled = new Promise<never>((_, reject) => {
    const cancel = (): void => reject(millraceError('query_canceled'));
    if (signal.aborted) cancel();
    signal.addEventListener('abort', cancel, { once: true });
  });
  const answer = await Promise.race([port.ask(request), cancelled]);
  if (answer.answer === 'failed') {
    throw millraceError(request.ask === 'set' ? 'invalid_option' : 'console_command_failed', { message: answer.message });
  }
  return answer;
}

const missing = (worker: number): readonly NoticeFields[] => [note(`worker ${worker} has not answered in time`)];

function valueAsked(asked: string, { user, settings }: RunnerContext): string | null {
  switch (asked) {
    case 'version()':
      return `PostgreSQL 15.0 (Millrace ${version} admin console)`;
    case 'current_database()':
      return settings().adminDatabase;
    case 'current_user()':
      return user;
    case 'current_schema()':
      return null;
    default:
      return asked;
  }
}
