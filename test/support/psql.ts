/** The real psql, where it is installed. */
import { spawn, spawnSync } from 'node:child_process';
import type { ServerAddress } from '../../src/config.ts';

/** Whether psql is installed. `describe.skipIf(!havePsql)('... (needs psql)', ...)`. */
export const havePsql: boolean = spawnSync('psql', ['--version'], { stdio: 'ignore' }).status === 0;

export interface PsqlResult {
  readonly stdout: string;
  readonly stderr: string;
  /** psql's exit status: 0 good, 1 fatal, 2 connection lost, 3 script error with ON_ERROR_STOP. */
  readonly code: number;
}

/**
 * Runs psql against a server. `input` is a script for its stdin, or the arguments after the connection (`['-c', 'SELECT 1']`).
 * Unaligned, tuples only and without ~/.psqlrc by default (`-X -A -t -q`); give `raw` for psql's own format.
 */
export function psql(
  address: Pick<ServerAddress, 'host' | 'port' | 'user' | 'database' | 'password'>,
  input: string | readonly string[],
  options: { readonly raw?: boolean; readonly env?: Readonly<Record<string, string>> } = {},
): Promise<PsqlResult> {
  const connection = ['-h', address.host, '-p', String(address.port), '-U', address.user, '-d', address.database];
  const style = options.raw ? ['-X'] : ['-X', '-A', '-t', '-q'];
  const child = spawn('psql', [...style, ...connection, ...(typeof input === 'string' ? ['-f', '-'] : input)], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: {
      ...process.env,
      PGAPPNAME: 'psql',
      PGCONNECT_TIMEOUT: '20',
      ...(address.password === undefined ? {} : { PGPASSWORD: address.password }),
      ...options.env,
    },
  });
  child.stdin.once('error', () => {});
  child.stdin.end(typeof input === 'string' ? input : '');
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ stdout, stderr, code: code ?? -1 }));
  });
}
