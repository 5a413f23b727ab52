/**
 * Connections to the brokers of one cluster, and what the cluster looks like.
 * Invariant: a connection on which a request went without answer is closed, because a late answer would be taken for the next one.
 * The versions of requests are those of Kafka 3.0, which every broker since then speaks.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { type API, Connection, type ConnectionOptions, metadataV9 } from '@platformatic/kafka';
import { KafkaError, kafkaError } from './failure.ts';

/** Where a cluster is and how to log in. */
export interface KafkaAddress {
  /** `host:port` each; an IPv6 address in brackets. */
  readonly brokers: readonly string[];
  /** Null: no TLS. `ca`, `cert` and `key` are PEM; without `ca` the authorities of Node count. */
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string; readonly verify: boolean } | null;
  readonly sasl: {
    readonly mechanism: 'PLAIN' | 'SCRAM-SHA-256' | 'SCRAM-SHA-512';
    readonly username: string;
    readonly password: string;
  } | null;
  /** How long to wait for a connection; default 10 s. */
  readonly connectTimeoutMs?: number;
  /** How long to wait for an answer; default 30 s. */
  readonly requestTimeoutMs?: number;
  /** How long to go on trying while the cluster is away or busy; default 60 s. */
  readonly retryForMs?: number;
}

/** A broker by its number, or whichever is reachable. */
export type Target = number | 'any';

/** Where the partitions of a topic are. */
export interface Placement {
  /** The broker that leads each partition, by partition; -1 where there is none at the moment. */
  readonly leaders: readonly number[];
  readonly replicationFactor: number;
}

export interface KafkaTransport {
  /** Sends one request and waits for its answer. */
  call<Arguments extends unknown[], Answer>(to: Target, api: API<Arguments, Answer>, args: Arguments, doing: string): Promise<Answer>;
  /** Where the partitions of a topic are, or undefined when there is no such topic. Remembered until `forget`. */
  placement(topic: string): Promise<Placement | undefined>;
  /** The broker that does administrative requests. */
  controller(): Promise<Target>;
  /** Tells where a broker is, as an answer of another broker named it. */
  learnBroker(node: number, host: string, port: number): void;
  /** Drops what is remembered of the cluster: something there has moved. */
  forget(): void;
  /** Does something again while it fails in a retriable way, until it has been tried long enough. */
  retrying<T>(work: () => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

export function openTransport(address: KafkaAddress): KafkaTransport {
  const connections = new Map<string, Promise<Connection>>();
  const bootstrap = address.brokers.map(parseBroker);
  const options = connectionOptions(address);
  let nodes = new Map<number, Endpoint>();
  let placements = new Map<string, Placement>();
  let controllerNode: number | undefined;
  let closed = false;

  const connect = async (to: Endpoint): Promise<Connection> => {
    if (closed) throw new KafkaError('fatal', 'unreachable', 'the connection to Kafka is closed');
    const key = `${to.host}:${to.port}`;
    const existing = connections.get(key);
    if (existing !== undefined) {
      const connection = await existing;
      if (connection.isConnected()) return connection;
    }
    const opening = openConnection(to, options);
    connections.set(key, opening);
    opening.catch(() => {
      if (connections.get(key) === opening) connections.delete(key);
    });
    return opening;
  };

  const reach = async (to: Target): Promise<Connection> => {
    if (to !== 'any') {
      if (!nodes.has(to)) await readMetadata([]);
      const node = nodes.get(to);
      if (node === undefined) throw new KafkaError('retriable', 'unreachable', `broker ${to} is not part of the cluster at the moment`);
      return connect(node);
    }
    let failure: unknown;
    for (const endpoint of [...nodes.values(), ...bootstrap]) {
      try {
        return await connect(endpoint);
      } catch (error) {
        failure = error;
      }
    }
    throw failure ?? new KafkaError('fatal', 'unreachable', 'no broker is named');
  };

  const call = async <Arguments extends unknown[], Answer>(
    to: Target,
    api: API<Arguments, Answer>,
    args: Arguments,
    doing: string,
  ): Promise<Answer> => {
    const connection = await reach(to);
    try {
      return await api.async(connection, ...args);
    } catch (error) {
      const failure = kafkaError(error, doing);
      if (failure.code === undefined) {
        connection.socket.destroy();
        connections.delete(`${connection.host}:${connection.port}`);
      }
      throw failure;
    }
  };

  const readMetadata = async (topics: readonly string[]): Promise<ReadonlyMap<string, Placement>> => {
    const doing = topics.length === 0 ? 'read which brokers there are' : `find topic "${topics.join('", "')}"`;
    const answer = await call('any', metadataV9.api, [[...topics], false, false], doing).catch((error: unknown) => {
      // The library takes an answer with an error in it, as for a topic that is not there, for a failed request.
      const response = error instanceof KafkaError && error.code !== undefined ? responseIn(error) : undefined;
      if (response === undefined) throw error;
      return response;
    });
    nodes = new Map(answer.brokers.map(({ nodeId, host, port }) => [nodeId, { host, port }]));
    controllerNode = answer.controllerId;
    const found = new Map<string, Placement>();
    for (const topic of answer.topics) {
      const name = topic.name ?? undefined;
      if (name === undefined || topic.errorCode === UNKNOWN_TOPIC) continue;
      if (topic.errorCode === TOPIC_AUTHORIZATION_FAILED) {
        const code = 'TOPIC_AUTHORIZATION_FAILED';
        throw new KafkaError('fatal', 'authorization', `not authorized to access topic "${name}"`, { code });
      }
      const leaders: number[] = [];
      for (const partition of topic.partitions) leaders[partition.partitionIndex] = partition.errorCode === 0 ? partition.leaderId : -1;
      if (topic.errorCode === 0) found.set(name, { leaders, replicationFactor: topic.partitions[0]?.replicaNodes.length ?? 0 });
    }
    return found;
  };

  return {
    call,
    async placement(topic) {
      const known = placements.get(topic);
      if (known !== undefined) return known;
      const found = (await readMetadata([topic])).get(topic);
      if (found !== undefined && !found.leaders.includes(-1)) placements.set(topic, found);
      return found;
    },
    async controller() {
      if (controllerNode === undefined) await readMetadata([]);
      return controllerNode === undefined || controllerNode < 0 ? 'any' : controllerNode;
    },
    learnBroker(node, host, port) {
      nodes.set(node, { host, port });
    },
    forget() {
      placements = new Map();
      nodes = new Map();
      controllerNode = undefined;
    },
    async retrying(work) {
      const until = Date.now() + (address.retryForMs ?? 60_000);
      for (let pause = 20; ; pause = Math.min(pause * 2, 1000)) {
        try {
          return await work();
        } catch (error) {
          const again = error instanceof KafkaError && error.kind === 'retriable' && Date.now() + pause < until && !closed;
          if (!again) throw error;
          if (error.code === 'CONCURRENT_TRANSACTIONS') {
            // The end of the transaction before is still being written: that takes milliseconds, and nothing has moved.
            pause = 5;
            await delay(10);
            continue;
          }
          await delay(pause);
          placements = new Map();
          controllerNode = undefined;
        }
      }
    },
    async close() {
      closed = true;
      const open = [...connections.values()];
      connections.clear();
      await Promise.all(open.map((one) => one.then((connection) => connection.close()).catch(() => undefined)));
    },
  };
}

const UNKNOWN_TOPIC = 3;
const TOPIC_AUTHORIZATION_FAILED = 29;

interface Endpoint {
  readonly host: string;
  readonly port: number;
}

function parseBroker(broker: string): Endpoint {
  const parts = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?$/.exec(broker.trim());
  const host = parts?.[1] ?? parts?.[2];
  const port = Number(parts?.[3] ?? 9092);
  if (host === undefined || port > 65_535) throw new KafkaError('fatal', 'unreachable', `"${broker}" is not a broker: write host:port`);
  return { host, port };
}

function connectionOptions({ tls, sasl, connectTimeoutMs, requestTimeoutMs }: KafkaAddress): ConnectionOptions {
  return {
    connectTimeout: connectTimeoutMs ?? 10_000,
    requestTimeout: requestTimeoutMs ?? 30_000,
    ...(tls === null ? {} : { tls: { ca: tls.ca, cert: tls.cert, key: tls.key, rejectUnauthorized: tls.verify } }),
    ...(sasl === null ? {} : { sasl: { ...sasl } }),
  };
}

async function openConnection(to: Endpoint, options: ConnectionOptions): Promise<Connection> {
  const connection = new Connection('millrace', options);
  // Without a listener an error that comes between two requests would end the process; the requests get it anyway.
  connection.on('error', () => undefined);
  try {
    await connection.connect(to.host, to.port);
    return connection;
  } catch (error) {
    connection.socket?.destroy();
    throw kafkaError(error, `connect to Kafka at ${to.host}:${to.port}`);
  }
}

type Metadata = Awaited<ReturnType<typeof metadataV9.api.async>>;

function responseIn(error: KafkaError): Metadata | undefined {
  return (error.cause as { readonly response?: Metadata } | undefined)?.response;
}
