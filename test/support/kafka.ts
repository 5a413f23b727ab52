/**
 * Real Apache Kafka for tests: one broker, or a cluster of a few; KRaft, transactions on.
 * Invariant: brokers and their files are gone when the test is over, also when the test process was killed.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { type Certificate, type TestAuthority, testAuthority } from './certificates.ts';
import { testRoot } from './cluster-template.ts';
import { findJava, freePorts, startWatcher } from './java.ts';
import { mavenFiles } from './maven.ts';

export interface TestKafkaOptions {
  /** Clients log in: as `KAFKA_USER` with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. */
  readonly sasl?: boolean;
  /** Clients speak TLS; the certificate is for `localhost`. */
  readonly tls?: boolean;
  /** Settings of the broker, e.g. `{ 'num.partitions': '3' }`. */
  readonly settings?: Readonly<Record<string, string>>;
  /** A broker of this test's own even where KAFKA_BROKERS names another: for tests that kill it. */
  readonly own?: boolean;
  /** For measurements: a larger heap, and Java's full optimisation, which takes longer to start. */
  readonly fast?: boolean;
}

export interface KafkaServer {
  /** As a client names them, `host:port`. */
  readonly brokers: readonly string[];
  /** The same broker without TLS and login, for looking at what is in it. */
  readonly plainBrokers: readonly string[];
  /** What a client needs to trust the broker and to be trusted; only with `tls`. */
  readonly tls?: { readonly ca: string; readonly client: Certificate };
  /** SIGKILL: what a power cut leaves. */
  kill(): Promise<void>;
  /** Starts it again on the same data and ports. */
  start(): Promise<void>;
  /** SIGSTOP: the broker is there and does not answer. */
  pause(): void;
  resume(): void;
  /** Ends the broker and removes its files. */
  stop(): Promise<void>;
  /** What the broker logged lately. */
  log(): string;
  /** Runs a command-line tool of Kafka (a Java class) with its own client, and returns what it wrote. */
  tool(className: string, args: readonly string[]): Promise<string>;
}

/** A cluster in which every topic is on every broker. */
export interface KafkaCluster {
  readonly brokers: readonly string[];
  /** By the number of the broker. */
  readonly nodes: ReadonlyMap<number, KafkaServer>;
  stop(): Promise<void>;
}

export const KAFKA_USER = { username: 'miller', password: 'water under the wheel' } as const;

/** Starts a broker for one test file, or says why it cannot: the reason to name when tests are skipped. */
export async function startKafka(options: TestKafkaOptions = {}): Promise<KafkaServer | { readonly skipped: string }> {
  const given = process.env['KAFKA_BROKERS'];
  if (given !== undefined && given !== '' && options.own !== true) {
    if (options.sasl === true || options.tls === true) return { skipped: 'KAFKA_BROKERS names a broker without TLS and login' };
    return foreignKafka(given.split(','));
  }
  const program = await kafkaProgram();
  if ('skipped' in program) return program;
  const [node] = await membersOf(1);
  return ownKafka(program, options, node as Member);
}

/** Starts so many brokers, each also a controller; all but a minority are needed. Or says why it cannot. */
export async function startKafkaCluster(
  count: number,
  settings: Readonly<Record<string, string>> = {},
): Promise<KafkaCluster | { readonly skipped: string }> {
  const program = await kafkaProgram();
  if ('skipped' in program) return program;
  const members = await membersOf(count);
  const started = await Promise.allSettled(members.map((member) => ownKafka(program, { settings }, member)));
  const nodes = new Map<number, KafkaServer>();
  for (const [index, node] of started.entries()) if (node.status === 'fulfilled') nodes.set(index + 1, node.value);
  const stop = async (): Promise<void> => {
    await Promise.all([...nodes.values()].map((node) => node.stop()));
  };
  const failed = started.find((node) => node.status === 'rejected');
  if (failed !== undefined) {
    await stop();
    throw failed.reason;
  }
  return { brokers: [...nodes.values()].flatMap((node) => node.brokers), nodes, stop };
}

interface KafkaProgram {
  readonly java: string;
  readonly jars: readonly string[];
}

async function kafkaProgram(): Promise<KafkaProgram | { readonly skipped: string }> {
  const java = findJava(17);
  if ('missing' in java) return { skipped: `Kafka needs Java: ${java.missing}` };
  try {
    return { java: java.java, jars: await mavenFiles(kafkaJars()) };
  } catch (error) {
    return { skipped: `Kafka is not here: ${error instanceof Error ? error.message : String(error)}` };
  }
}

/** A broker of a cluster. */
interface Member {
  readonly id: number;
  readonly ports: Ports;
  /** `id@host:port` of every controller. */
  readonly voters: readonly string[];
}

async function membersOf(count: number): Promise<readonly Member[]> {
  const ports = await freePorts(3 * count);
  const numbers = Array.from({ length: count }, (_, index) => {
    const [client = 0, plain = 0, controller = 0] = ports.slice(3 * index);
    return { id: index + 1, ports: { client, plain, controller } };
  });
  const voters = numbers.map(({ id, ports: { controller } }) => `${id}@localhost:${controller}`);
  return numbers.map((member) => ({ ...member, voters }));
}

function kafkaJars(): { path: string; sha1: string }[] {
  const list = readFileSync(fileURLToPath(new URL('kafka-jars.txt', import.meta.url)), 'utf8');
  return list.split('\n').flatMap((line) => {
    const [sha1 = '', path] = line.split(' ');
    return line.startsWith('#') || path === undefined ? [] : [{ sha1, path }];
  });
}

function foreignKafka(brokers: readonly string[]): KafkaServer {
  const notOurs = (): never => {
    throw new Error('KAFKA_BROKERS names a broker that this test did not start: ask for one with { own: true }');
  };
  return {
    brokers,
    plainBrokers: brokers,
    kill: notOurs,
    start: notOurs,
    pause: notOurs,
    resume: notOurs,
    tool: notOurs,
    stop: async () => undefined,
    log: () => '',
  };
}

async function ownKafka({ java, jars }: KafkaProgram, options: TestKafkaOptions, member: Member): Promise<KafkaServer> {
  const home = mkdtempSync(join(testRoot(), 'kafka-'));
  const logFile = join(home, 'broker.log');
  const watcher = startWatcher(home);
  const authority = options.tls === true ? testAuthority() : undefined;
  const properties = brokerProperties(home, member, options, authority);
  const propertiesFile = join(home, 'server.properties');
  writeFileSync(
    propertiesFile,
    `${Object.entries(properties)
      .map(([name, value]) => `${name}=${value}`)
      .join('\n')}\n`,
  );
  writeFileSync(join(home, 'log4j2.properties'), LOG4J);
  const jvm = [
    ...(options.fast === true ? ['-Xmx1g'] : ['-Xmx256m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1']),
    `-Dlog4j2.configurationFile=${join(home, 'log4j2.properties')}`,
  ];
  const env = { ...process.env, CLASSPATH: jars.join(':') };
  const tool = async (className: string, args: readonly string[]): Promise<string> => {
    const { stdout } = await promisify(execFile)(java, [...jvm, className, ...args], { env, maxBuffer: 64 << 20 });
    return stdout;
  };
  let broker: ChildProcess | undefined;
  let ended: Promise<void> = Promise.resolve();
  const start = async (): Promise<void> => {
    const out = openSync(logFile, 'a');
    const startedBefore = startCount(logFile);
    const child = spawn(java, [...jvm, 'kafka.Kafka', propertiesFile], {
      env,
      detached: true,
      stdio: ['ignore', out, out],
    });
    broker = child;
    ended = new Promise((resolve) => child.once('exit', () => resolve()));
    watcher.stdin?.write(`${child.pid}\n`);
    const deadline = Date.now() + 120_000;
    while (startCount(logFile) === startedBefore) {
      if (child.exitCode !== null || Date.now() > deadline) throw new Error(`Kafka did not start:\n${tail(logFile)}`);
      await delay(50);
    }
  };
  const kill = async (): Promise<void> => {
    broker?.kill('SIGKILL');
    await ended;
  };
  const stop = async (): Promise<void> => {
    await kill();
    watcher.stdin?.end();
    rmSync(home, { recursive: true, force: true });
    authority?.remove();
  };
  try {
    await tool('kafka.tools.StorageTool', ['format', '-t', 'bWlsbHJhY2UtdGVzdC1rYQ', '-c', propertiesFile, ...scramArguments(options)]);
    await start();
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    brokers: [`localhost:${member.ports.client}`],
    plainBrokers: [`localhost:${member.ports.plain}`],
    ...(authority === undefined ? {} : { tls: { ca: authority.cert, client: authority.issue('miller') } }),
    kill,
    start,
    pause: () => broker?.kill('SIGSTOP'),
    resume: () => broker?.kill('SIGCONT'),
    stop,
    log: () => tail(logFile),
    tool,
  };
}

interface Ports {
  readonly client: number;
  readonly plain: number;
  readonly controller: number;
}

function brokerProperties(
  home: string,
  { id, ports, voters }: Member,
  options: TestKafkaOptions,
  authority?: TestAuthority,
): Record<string, string> {
  const replicas = String(voters.length);
  // With one away there are as many as this.
  const inSync = String(Math.max(1, voters.length - 1));
  const sasl = options.sasl === true;
  const protocol = `${sasl ? 'SASL_' : ''}${authority === undefined ? 'PLAINTEXT' : 'SSL'}`;
  const login = `username="${KAFKA_USER.username}" password="${KAFKA_USER.password}"`;
  const listeners = `CLIENT://localhost:${ports.client},PLAIN://localhost:${ports.plain}`;
  return {
    'process.roles': 'broker,controller',
    'node.id': String(id),
    'controller.quorum.voters': voters.join(','),
    'log.dirs': join(home, 'data'),
    listeners: `${listeners},CONTROLLER://localhost:${ports.controller}`,
    'advertised.listeners': listeners,
    'listener.security.protocol.map': `CLIENT:${protocol},PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT`,
    'controller.listener.names': 'CONTROLLER',
    'inter.broker.listener.name': 'PLAIN',
    'default.replication.factor': replicas,
    'min.insync.replicas': inSync,
    'offsets.topic.replication.factor': replicas,
    'offsets.topic.num.partitions': '1',
    'transaction.state.log.replication.factor': replicas,
    'transaction.state.log.min.isr': inSync,
    'transaction.state.log.num.partitions': '4',
    'share.coordinator.state.topic.replication.factor': replicas,
    'share.coordinator.state.topic.min.isr': inSync,
    'group.initial.rebalance.delay.ms': '0',
    'auto.create.topics.enable': 'false',
    // The cleaner takes 128 MB where it is not told otherwise.
    'log.cleaner.dedupe.buffer.size': '4194304',
    // A killed broker is let back in when its session is over.
    'broker.session.timeout.ms': '1000',
    'broker.heartbeat.interval.ms': '200',
    'num.network.threads': '2',
    'num.io.threads': '2',
    'log.segment.bytes': '67108864',
    ...(sasl
      ? {
          'sasl.enabled.mechanisms': 'PLAIN,SCRAM-SHA-256,SCRAM-SHA-512',
          'listener.name.client.plain.sasl.jaas.config': `org.apache.kafka.common.security.plain.PlainLoginModule required user_${KAFKA_USER.username}="${KAFKA_USER.password}";`,
          'listener.name.client.scram-sha-256.sasl.jaas.config': `org.apache.kafka.common.security.scram.ScramLoginModule required ${login};`,
          'listener.name.client.scram-sha-512.sasl.jaas.config': `org.apache.kafka.common.security.scram.ScramLoginModule required ${login};`,
        }
      : {}),
    ...(authority === undefined ? {} : tlsProperties(home, authority)),
    ...options.settings,
  };
}

function tlsProperties(home: string, authority: TestAuthority): Record<string, string> {
  const own = authority.issue('localhost');
  const keyStore = join(home, 'keystore.pem');
  const trustStore = join(home, 'truststore.pem');
  writeFileSync(keyStore, `${own.key}${own.cert}`);
  writeFileSync(trustStore, authority.cert);
  return {
    'ssl.keystore.type': 'PEM',
    'ssl.keystore.location': keyStore,
    'ssl.truststore.type': 'PEM',
    'ssl.truststore.location': trustStore,
    'listener.name.client.ssl.client.auth': 'requested',
  };
}

function scramArguments(options: TestKafkaOptions): string[] {
  if (options.sasl !== true) return [];
  const user = `[name=${KAFKA_USER.username},password=${KAFKA_USER.password}]`;
  return ['--add-scram', `SCRAM-SHA-256=${user}`, '--add-scram', `SCRAM-SHA-512=${user}`];
}

function startCount(logFile: string): number {
  return readFileSync(logFile, 'utf8').split('Kafka Server started').length;
}

function tail(logFile: string): string {
  return readFileSync(logFile, 'utf8').slice(-20_000);
}

const LOG4J = `
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c{1} %m%n
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
logger.certificates.name = org.apache.kafka.common.config
logger.certificates.level = ERROR
`;
