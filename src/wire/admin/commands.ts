/**
 * The language of the admin console: text to commands. Pure.
 * Invariant: every text is read whole into commands or refused; nothing is carried out of a text that has a part that cannot be read.
 */
import { millraceError } from '../../errors.ts';
import type { WorkerCommand } from '../pool/report.ts';
import type { ShutdownMode } from './messages.ts';

export const shows = [
  'HELP',
  'POOLS',
  'CLIENTS',
  'SERVERS',
  'STATS',
  'STATS_TOTALS',
  'STATS_AVERAGES',
  'TOTALS',
  'DATABASES',
  'USERS',
  'CONFIG',
  'LISTS',
  'VERSION',
  'STATE',
  'ACTIVE_SOCKETS',
  'SOCKETS',
  'WORKERS',
] as const;
export type Show = (typeof shows)[number];

export type ConsoleCommand =
  | { readonly type: 'show'; readonly what: Show }
  /** For all workers. */
  | { readonly type: 'worker'; readonly tag: string; readonly command: WorkerCommand }
  | { readonly type: 'reload' }
  | { readonly type: 'set'; readonly name: string; readonly value: string }
  | { readonly type: 'shutdown'; readonly mode: ShutdownMode }
  /** What drivers say to any server: answered as Postgres would, with no effect. */
  | { readonly type: 'variable'; readonly name: string }
  | { readonly type: 'select'; readonly column: string; readonly value: string; readonly kind: 'int4' | 'text' }
  | { readonly type: 'nothing'; readonly tag: string };

interface Token {
  readonly kind: 'word' | 'name' | 'text' | 'sign';
  readonly text: string;
}

/** Variables of Postgres that drivers set and ask for. */
export const variables: Readonly<Record<string, string>> = {
  application_name: '',
  bytea_output: 'hex',
  client_encoding: 'UTF8',
  client_min_messages: 'notice',
  datestyle: 'ISO, MDY',
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  extra_float_digits: '1',
  idle_in_transaction_session_timeout: '0',
  in_hot_standby: 'off',
  integer_datetimes: 'on',
  intervalstyle: 'postgres',
  is_superuser: 'off',
  lc_monetary: 'C',
  lock_timeout: '0',
  max_identifier_length: '63',
  search_path: '""',
  server_encoding: 'UTF8',
  server_version: '15.0',
  session_authorization: '',
  standard_conforming_strings: 'on',
  statement_timeout: '0',
  timezone: 'UTC',
  transaction_isolation: 'read committed',
  transaction_read_only: 'off',
};

/** The commands of a text, without empty ones. Throws a MillraceError. */
export function parseCommands(text: string): readonly ConsoleCommand[] {
  const statements: Token[][] = [[]];
  for (const token of tokens(text)) {
    if (token.kind === 'sign' && token.text === ';') statements.push([]);
    else statements.at(-1)?.push(token);
  }
  return statements.filter((one) => one.length > 0).map(parseCommand);
}

function* tokens(text: string): Generator<Token> {
  const pattern = /\s+|--[^\n]*|\/\*[\s\S]*?\*\/|"((?:[^"]|"")*)"|'((?:[^']|'')*)'|([\p{L}\p{N}_$.+-]+)|([;=,()*:])/uy;
  while (pattern.lastIndex < text.length) {
    const at = pattern.lastIndex;
    const match = pattern.exec(text);
    if (match === null) throw unknown(text.slice(at));
    if (match[1] !== undefined) yield { kind: 'name', text: match[1].replaceAll('""', '"') };
    else if (match[2] !== undefined) yield { kind: 'text', text: match[2].replaceAll("''", "'") };
    else if (match[3] !== undefined) yield { kind: 'word', text: match[3] };
    else if (match[4] !== undefined) yield { kind: 'sign', text: match[4] };
  }
}

function unknown(command: string): Error {
  const shown = command.trim().replaceAll(/\s+/g, ' ');
  return millraceError('console_command_unknown', { command: shown.length > 100 ? `${shown.slice(0, 100)}...` : shown });
}

function parseCommand(statement: readonly Token[]): ConsoleCommand {
  const refuse = (): Error => unknown(statement.map(({ text }) => text).join(' '));
  const [first, ...rest] = statement;
  const verb = keyword(first);
  const only = (): void => {
    if (rest.length > 0) throw refuse();
  };
  const database = (): string | null => {
    const [one, more] = rest;
    if (more !== undefined || one?.kind === 'sign') throw refuse();
    return one === undefined ? null : one.text;
  };
  const named = (): string => {
    const name = database();
    if (name === null) throw refuse();
    return name;
  };
  const worker = (tag: string, command: WorkerCommand): ConsoleCommand => ({ type: 'worker', tag, command });
  switch (verb) {
    case 'SHOW':
      return parseShow(rest, refuse);
    case 'PAUSE':
      return worker('PAUSE', { command: 'pause', database: database() });
    case 'RESUME':
      return worker('RESUME', { command: 'resume', database: database() });
    case 'DISABLE':
      return worker('DISABLE', { command: 'disable', database: named() });
    case 'ENABLE':
      return worker('ENABLE', { command: 'enable', database: named() });
    case 'RECONNECT':
      return worker('RECONNECT', { command: 'reconnect', database: database() });
    case 'KILL':
      return worker('KILL', { command: 'kill', database: database() });
    case 'KILL_CLIENT':
      return worker('KILL_CLIENT', { command: 'kill_client', id: named() });
    case 'WAIT_CLOSE':
      return worker('WAIT_CLOSE', { command: 'wait_close', database: database() });
    case 'RELOAD':
      only();
      return { type: 'reload' };
    case 'SHUTDOWN':
      return { type: 'shutdown', mode: shutdownMode(rest, refuse) };
    case 'SET':
      return parseSet(rest, refuse);
    case 'SELECT':
      return parseSelect(rest, refuse);
    case 'BEGIN':
    case 'START':
      return { type: 'nothing', tag: verb === 'BEGIN' ? 'BEGIN' : 'START TRANSACTION' };
    case 'COMMIT':
    case 'END':
      return { type: 'nothing', tag: 'COMMIT' };
    case 'ROLLBACK':
    case 'ABORT':
      return { type: 'nothing', tag: 'ROLLBACK' };
    case 'RESET':
      return { type: 'nothing', tag: 'RESET' };
    case 'DISCARD':
    case 'DEALLOCATE':
      return { type: 'nothing', tag: `${verb}${keyword(rest[0]) === 'ALL' ? ' ALL' : ''}` };
    default:
      throw refuse();
  }
}

const keyword = (token: Token | undefined): string => (token?.kind === 'word' ? token.text.toUpperCase() : '');

function parseShow(rest: readonly Token[], refuse: () => Error): ConsoleCommand {
  const words = rest.map((token) => (token.kind === 'sign' ? '' : token.text.toUpperCase()));
  const asked = words.join(' ');
  const what = shows.find((one) => one === asked);
  if (what !== undefined) return { type: 'show', what };
  if (asked === 'TRANSACTION ISOLATION LEVEL') return { type: 'variable', name: 'transaction_isolation' };
  if (asked === 'TIME ZONE') return { type: 'variable', name: 'TimeZone' };
  const [name, more] = rest;
  if (name === undefined || more !== undefined || !Object.hasOwn(variables, name.text.toLowerCase())) throw refuse();
  return { type: 'variable', name: name.text };
}

function parseSet(rest: readonly Token[], refuse: () => Error): ConsoleCommand {
  const scoped = ['SESSION', 'LOCAL'].includes(keyword(rest[0])) && keyword(rest[1]) !== 'TO' && rest[1]?.text !== '=';
  const [name, sign, ...values] = scoped ? rest.slice(1) : rest;
  if (name === undefined || name.kind === 'sign' || sign === undefined) throw refuse();
  const lower = name.text.toLowerCase();
  if (Object.hasOwn(variables, lower)) return { type: 'nothing', tag: 'SET' };
  if (['TIME', 'CHARACTERISTICS', 'TRANSACTION', 'NAMES'].includes(keyword(name)) || scoped) return { type: 'nothing', tag: 'SET' };
  if (sign.text !== '=' && keyword(sign) !== 'TO') throw refuse();
  // `admin_users = a, b` and `= 'a,b'` are the same.
  const value = values.map(({ text }) => text).join('');
  return { type: 'set', name: lower, value };
}

function parseSelect(rest: readonly Token[], refuse: () => Error): ConsoleCommand {
  const text = rest.map((token) => (token.kind === 'text' ? `'${token.text}'` : token.text)).join(' ');
  const match = /^(\d{1,9}|'[^']*'|(?:pg_catalog\.)?\w+ \( \)|current_user)(?: (?:AS )?(\w+))?$/i.exec(text);
  if (match === null) throw refuse();
  const [, expression = '', alias] = match;
  if (/^\d/.test(expression)) return { type: 'select', column: alias ?? '?column?', value: expression, kind: 'int4' };
  if (expression.startsWith("'")) return { type: 'select', column: alias ?? '?column?', value: expression.slice(1, -1), kind: 'text' };
  const name = expression
    .toLowerCase()
    .replace(/^pg_catalog\./, '')
    .replace(' ( )', '');
  if (!['version', 'current_schema', 'current_database', 'current_user'].includes(name)) throw refuse();
  return { type: 'select', column: alias ?? name, value: `${name}()`, kind: 'text' };
}

function shutdownMode(rest: readonly Token[], refuse: () => Error): ShutdownMode {
  const [mode, more] = rest;
  if (mode === undefined) return 'now';
  if (more === undefined && keyword(mode) === 'WAIT_FOR_CLIENTS') return 'wait_for_clients';
  if (more === undefined && keyword(mode) === 'WAIT_FOR_SERVERS') return 'wait_for_servers';
  throw refuse();
}
