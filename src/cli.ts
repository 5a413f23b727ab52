/**
 * The command line.
 * Invariant: whatever cannot be done is said in one line on stderr, with exit status 1; a stop that was asked for has status 0.
 */
import { availableParallelism } from 'node:os';
import { Command, CommanderError, Option } from 'commander';
import { parseHostPort, parseUpstream, parseWorkers, type ServeConfig } from './config-loading.ts';
import { checkUpstream, showCheck } from './server/check.ts';
import { type Service, serve } from './server/serve.ts';

interface ServeFlags {
  readonly listen: string;
  readonly http: string;
  readonly upstream?: string;
  readonly dataDir: string;
  readonly workers?: string;
}

/** Reads the arguments (without node and script) and does what they say. Resolves when the job runs; the process ends when it is over. */
export async function runCli(args: readonly string[]): Promise<void> {
  try {
    await commands().parseAsync([...args], { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) process.exit(error.exitCode);
    fail(error);
  }
}

function commands(): Command {
  const program = new Command('millrace')
    .description('A Postgres you connect to with psql, an ORM or a BI tool, that also understands live schema versions and live views.')
    .exitOverride();
  const upstream = (): Option =>
    new Option('--upstream <url>', 'the PostgreSQL server behind the proxy: postgres://user@host:port/database').env('MILLRACE_UPSTREAM');
  program
    .command('serve')
    .description('start the proxy, on an embedded PostgreSQL unless --upstream names another')
    .addOption(new Option('--listen <host:port>', 'where clients connect').env('MILLRACE_LISTEN').default('127.0.0.1:6875'))
    .addOption(new Option('--http <host:port>', '/healthz, /readyz and /metrics').env('MILLRACE_HTTP').default('127.0.0.1:6876'))
    .addOption(upstream())
    .addOption(new Option('--data-dir <directory>', 'what Millrace keeps on disk').env('MILLRACE_DATA_DIR').default('./millrace-data'))
    .addOption(new Option('--workers <number>', 'proxy processes (default: 2, or 1 on a single core)').env('MILLRACE_WORKERS'))
    .addHelpText(
      'after',
      '\nSecrets are encrypted under MILLRACE_SECRET_KEY or MILLRACE_SECRET_KEY_FILE (32 bytes, hex or base64), else a key in the data directory.',
    )
    .action(async (flags: ServeFlags) => runService(serveConfig(flags)));
  program
    .command('check')
    .description('say, line by line, what a PostgreSQL server allows and what to do about what it does not')
    .addOption(upstream().makeOptionMandatory())
    .action(async ({ upstream: url }: { upstream: string }) => {
      const lines = await checkUpstream(parseUpstream(url, process.env));
      process.stdout.write(showCheck(lines));
      process.exitCode = lines.some(({ state }) => state === 'missing') ? 1 : 0;
    });
  return program;
}

function serveConfig(flags: ServeFlags): ServeConfig {
  return {
    listen: parseHostPort(flags.listen, '--listen'),
    http: parseHostPort(flags.http, '--http'),
    // An empty MILLRACE_UPSTREAM, as compose files leave it, is none.
    upstream: flags.upstream === undefined || flags.upstream === '' ? undefined : parseUpstream(flags.upstream, process.env),
    dataDir: flags.dataDir,
    workers: flags.workers === undefined || flags.workers === '' ? Math.min(2, availableParallelism()) : parseWorkers(flags.workers),
  };
}

async function runService(config: ServeConfig): Promise<void> {
  let service: Service | undefined;
  let asked = 0;
  const starting = new AbortController();
  let firstAsked = 0;
  const stop = async (): Promise<void> => {
    // One Ctrl-C arrives twice under npm: from the terminal, and passed on by npm.
    if (asked > 0 && Date.now() - firstAsked < 1_000) return;
    if (asked === 0) firstAsked = Date.now();
    asked++;
    if (asked > 3) process.exit(1);
    if (service === undefined) {
      starting.abort(new Error('asked to stop'));
      if (asked > 1) process.exit(1);
      return;
    }
    const forced = asked > 1;
    await service.stop();
    process.exit(forced ? 1 : 0);
  };
  process.on('SIGINT', stop);
  process.on('SIGTERM', stop);
  process.on('SIGHUP', stop);
  // A reader that went away (`millrace serve | head -1`) is no reason to stop.
  process.stdout.on('error', () => {});
  try {
    service = await serve(config, fail, starting.signal);
  } catch (error) {
    if (asked > 0) process.exit(0);
    fail(error);
  }
  if (asked > 0) {
    await service.stop();
    process.exit(0);
  }
}

function fail(error: unknown): never {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`millrace: ${message}\n`);
  process.exit(1);
}
