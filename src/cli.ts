/**
 * The command line.
 * Invariant: whatever cannot be done is said in one line on stderr, with exit status 1; a stop that was asked for has status 0.
 */
import { availableParallelism } from 'node:os';
import { Command, CommanderError, Option } from 'commander';
import { parseCopies, parseHostPort, parseUpstream, parseWorkers } from './config-loading.ts';
import { flagOf, loadProxy, type ProxySource } from './proxy-settings.ts';
import type { ServeConfig } from './serve-config.ts';
import { checkUpstream, showCheck } from './server/check.ts';
import { type Service, serve } from './server/serve.ts';

interface ServeFlags {
  readonly listen: string;
  readonly http: string;
  readonly upstream?: string;
  readonly dataDir: string;
  readonly workers?: string;
  readonly copySessions: string;
  readonly copyChunkMb: string;
  readonly config?: string;
  readonly poolMode?: string;
  readonly defaultPoolSize?: string;
  readonly maxClientConn?: string;
  readonly authType?: string;
  readonly authFile?: string;
  readonly tlsMode?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsCa?: string;
  readonly adminUsers?: string;
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
    .addOption(
      // A second one on two cores made a copy 6 % faster, and what others waited for an epoch meanwhile three times as long.
      setting(
        '--copy-sessions <number>',
        'pieces of one table that its first copy reads at a time (default: 2, or 1 on one or two cores)',
      ).default(availableParallelism() > 2 ? '2' : '1', ''),
    )
    .addOption(setting('--copy-chunk-mb <number>', 'size of such a piece').default('32'))
    .addOption(setting('--config <file>', 'settings of pools, limits, timeouts, TLS and authentication, as in pgbouncer.ini'))
    .addOption(setting('--pool-mode <mode>', 'session (default), transaction or statement'))
    .addOption(setting('--default-pool-size <number>', 'server connections of one role to one database, in the pooled modes (default: 20)'))
    .addOption(setting('--max-client-conn <number>', 'client connections of all workers together (default: 10000)'))
    .addOption(setting('--auth-type <type>', 'how pooled clients authenticate: scram-sha-256 (default), md5, plain, trust or cert'))
    .addOption(setting('--auth-file <file>', 'roles and their secrets, as in PgBouncer'))
    .addOption(setting('--tls-mode <mode>', 'TLS with clients: disable (default), allow, prefer, require, verify-ca or verify-full'))
    .addOption(setting('--tls-cert <file>', 'the certificate shown to clients'))
    .addOption(setting('--tls-key <file>', 'its key'))
    .addOption(setting('--tls-ca <file>', 'what certificates of clients are verified against'))
    .addOption(setting('--admin-users <names>', 'roles that may use the admin console, separated by commas'))
    .addHelpText(
      'after',
      '\nSecrets are encrypted under MILLRACE_SECRET_KEY or MILLRACE_SECRET_KEY_FILE (32 bytes, hex or base64), else a key in the data directory.',
    )
    .action(async (flags: ServeFlags, command: Command) =>
      runService(serveConfig(flags, command.getOptionValueSource('listen') === 'default')),
    );
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

/** `--pool-mode <mode>`, also as MILLRACE_POOL_MODE. */
function setting(flag: string, description: string): Option {
  const name = flag.slice(2).replace(/ .*/, '');
  return new Option(flag, description).env(`MILLRACE_${name.toUpperCase().replaceAll('-', '_')}`);
}

function serveConfig(flags: ServeFlags, listenIsDefault: boolean): ServeConfig {
  const proxySource = settingSource(flags);
  const proxy = loadProxy(proxySource);
  return {
    listen: listenIsDefault && proxy.listen !== undefined ? proxy.listen : parseHostPort(flags.listen, '--listen'),
    http: parseHostPort(flags.http, '--http'),
    // An empty MILLRACE_UPSTREAM, as compose files leave it, is none.
    upstream: flags.upstream === undefined || flags.upstream === '' ? undefined : parseUpstream(flags.upstream, process.env),
    dataDir: flags.dataDir,
    workers: flags.workers === undefined || flags.workers === '' ? Math.min(2, availableParallelism()) : parseWorkers(flags.workers),
    copies: parseCopies(flags.copySessions, flags.copyChunkMb),
    proxy,
    proxySource,
  };
}

function settingSource(flags: ServeFlags): ProxySource {
  const given = Object.entries(flagOf).flatMap(([name, flag]): [string, string][] => {
    const key = flag.slice(2).replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase()) as keyof ServeFlags;
    const value = flags[key];
    return value === undefined || value === '' ? [] : [[name, value]];
  });
  return { ...(flags.config === undefined || flags.config === '' ? {} : { file: flags.config }), flags: Object.fromEntries(given) };
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
  process.on('SIGHUP', () => service?.reload());
  // A reader that went away (`millrace serve | head -1`) is no reason to stop.
  process.stdout.on('error', () => {});
  try {
    service = await serve(config, { lost: fail, stop: () => void stop() }, starting.signal);
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
