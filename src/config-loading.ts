/**
 * From flags and environment to the configuration of the main process.
 * Invariant: what is returned is complete and checked; everything that is wrong is an error of one line that names the flag. No password
 * is ever part of such a line.
 */
import { readFileSync } from 'node:fs';
import { userInfo } from 'node:os';
import type { CopySettings, ServerAddress, SslMode, SslOptions } from './config.ts';

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** `127.0.0.1:6875`, `[::1]:6875`, `:6875` (all addresses) or `6875` (loopback). `flag` is named in the error. */
export function parseHostPort(text: string, flag: string): HostPort {
  const match = /^(?:(?:\[([^\]]+)\]|([^:[\]]*)):)?(\d+)$/.exec(text.trim());
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) throw new Error(`${flag}: "${text}" is not HOST:PORT`);
  const host = match[1] ?? match[2];
  return { host: host === undefined ? '127.0.0.1' : host === '' || host === '*' ? '0.0.0.0' : host, port };
}

/** An address as it is typed: IPv6 in brackets. */
export function showHostPort({ host, port }: HostPort): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** A count of workers: a number from 1 to 64. */
export function parseWorkers(text: string): number {
  return parseCount(text, '--workers', 64);
}

/** How first copies are made: `sessions` a number from 1 to 16, `megabytes` from 1 to 65536. */
export function parseCopies(sessions: string, megabytes: string): CopySettings {
  return {
    sessions: parseCount(sessions, '--copy-sessions', 16),
    chunkBytes: parseCount(megabytes, '--copy-chunk-mb', 65_536) * 1024 * 1024,
  };
}

function parseCount(text: string, flag: string, most: number): number {
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1 || count > most) throw new Error(`${flag}: "${text}" is not a number from 1 to ${most}`);
  return count;
}

/**
 * The server that --upstream names, as libpq reads it: a URL (postgres://...) or `host=... dbname=...` pairs.
 * sslrootcert, sslcert and sslkey are read here; a password that is not given comes from PGPASSWORD.
 */
export function parseUpstream(text: string, environment: Environment): ServerAddress {
  const parameters = /^postgres(ql)?:\/\//.test(text) ? parseUrl(text) : parsePairs(text);
  const known = new Set(['host', 'port', 'user', 'password', 'dbname', 'sslmode', 'sslrootcert', 'sslcert', 'sslkey', ...harmless]);
  const unknown = Object.keys(parameters).find((name) => !known.has(name));
  if (unknown !== undefined) throw new Error(`--upstream: parameter "${unknown}" is not supported`);
  const host = parameters['host'] || 'localhost';
  if (/,/.test(`${host}${parameters['port'] ?? ''}`)) throw new Error('--upstream: several hosts are not supported, give one');
  const port = Number(parameters['port'] || 5432);
  if (!Number.isInteger(port) || port < 1 || port > 65_535) throw new Error(`--upstream: "${parameters['port']}" is not a port`);
  const user = parameters['user'] || environment['PGUSER'] || userInfo().username;
  const password = parameters['password'] || environment['PGPASSWORD'];
  return {
    host,
    port,
    user,
    ...(password === undefined || password === '' ? {} : { password }),
    database: parameters['dbname'] || user,
    ssl: sslOptions(parameters),
  };
}

/** Of no meaning to Millrace, and common in URLs that work elsewhere. */
const harmless = [
  'application_name',
  'fallback_application_name',
  'connect_timeout',
  'target_session_attrs',
  'gssencmode',
  'channel_binding',
];

function parseUrl(text: string): Record<string, string> {
  // By hand, because what libpq accepts is not always a URL to the WHATWG: an empty host, a host that is a percent-encoded path.
  const match = /^postgres(?:ql)?:\/\/(?:([^/?]*)@)?([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/s.exec(text);
  if (match === null) throw new Error('--upstream is not a URL like postgres://user@host:5432/database');
  const [, credentials = '', place = '', database = '', query = ''] = match;
  const found: Record<string, string> = {};
  const colon = credentials.indexOf(':');
  const set = (name: string, value: string): void => {
    if (value !== '') found[name] = decode(value);
  };
  set('user', colon < 0 ? credentials : credentials.slice(0, colon));
  set('password', colon < 0 ? '' : credentials.slice(colon + 1));
  const parts = /^(?:\[([^\]]*)\]|([^:]*))(?::(.*))?$/.exec(place);
  if (parts === null && !place.includes(',')) throw new Error('--upstream: the host is not understood (IPv6 addresses go in brackets)');
  set('host', parts === null ? place : (parts[1] ?? parts[2] ?? ''));
  set('port', parts?.[3] ?? '');
  set('dbname', database);
  for (const pair of query.split('&').filter((one) => one !== '')) {
    const at = pair.indexOf('=');
    if (at < 1) throw new Error('--upstream: a parameter after "?" has no value');
    set(decode(pair.slice(0, at)), pair.slice(at + 1));
  }
  return found;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    // The text may be a password, so it is not shown.
    throw new Error('--upstream: a "%" is not followed by two hexadecimal digits (a literal one is written %25)');
  }
}

function parsePairs(text: string): Record<string, string> {
  const found: Record<string, string> = {};
  const pair = /\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)/gsy;
  let end = 0;
  for (let match = pair.exec(text); match !== null; match = pair.exec(text)) {
    end = pair.lastIndex;
    found[match[1] ?? ''] = (match[2] ?? match[3] ?? '').replace(/\\(.)/gs, '$1');
  }
  if (text.slice(end).trim() !== '' || end === 0)
    throw new Error('--upstream is neither a URL (postgres://user@host:5432/database) nor host=... dbname=...');
  return found;
}

const sslModes: Readonly<Record<string, SslMode>> = {
  disable: 'disable',
  allow: 'prefer',
  prefer: 'prefer',
  require: 'require',
  'verify-ca': 'verify-ca',
  'verify-full': 'verify-full',
};

function sslOptions(parameters: Readonly<Record<string, string>>): SslOptions {
  const asked = parameters['sslmode'] ?? (parameters['sslrootcert'] === 'system' ? 'verify-full' : 'prefer');
  const mode = sslModes[asked];
  if (mode === undefined) throw new Error(`--upstream: sslmode "${asked}" is not one of ${Object.keys(sslModes).join(', ')}`);
  const pem = (name: string): string | undefined => {
    const path = parameters[name];
    if (path === undefined || (name === 'sslrootcert' && path === 'system')) return undefined;
    try {
      return readFileSync(path, 'utf8');
    } catch (cause) {
      throw new Error(`--upstream: cannot read ${name} "${path}": ${reason(cause)}`, { cause });
    }
  };
  const ca = pem('sslrootcert');
  const cert = pem('sslcert');
  const key = pem('sslkey');
  return { mode, ...(ca === undefined ? {} : { ca }), ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) };
}

/** The system's own words for what failed, without Node's code and path around them. */
export function reason(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return /^[A-Z]+: ([^,]+)/.exec(text)?.[1] ?? text;
}
