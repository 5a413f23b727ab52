/**
 * What goes wrong with Kafka, in our own words.
 * Invariant: nothing of the client library gets out of this folder; every failure is a KafkaError whose `kind` says what the caller does next.
 */

/**
 * - `fenced`: a newer producer has taken over the transactional id: stop, and leave the topic to it.
 * - `retriable`: the cluster is away or busy: recover the producer, read the progress record and go on from there.
 * - `fatal`: trying again does not help before somebody changes something.
 */
export type KafkaFailure = 'fenced' | 'retriable' | 'fatal';

/** What the failure is about, for messages and hints. */
export type KafkaCondition =
  | 'unreachable'
  | 'tls'
  | 'authentication'
  | 'authorization'
  | 'timeout'
  | 'unknown_topic'
  | 'topic_config'
  | 'record_too_large'
  | 'transaction'
  | 'unsupported'
  | 'broker';

/** A failure of a conversation with Kafka. The message is complete in itself; `cause` is what was underneath. */
export class KafkaError extends Error {
  override readonly name = 'KafkaError';
  readonly kind: KafkaFailure;
  readonly condition: KafkaCondition;
  /** Name of the error in Kafka's protocol, where a broker answered with one, e.g. `TOPIC_AUTHORIZATION_FAILED`. */
  readonly code: string | undefined;

  constructor(kind: KafkaFailure, condition: KafkaCondition, message: string, options: { code?: string; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.kind = kind;
    this.condition = condition;
    this.code = options.code;
  }
}

type Meaning = readonly [KafkaFailure, KafkaCondition];

/** Errors of the protocol that say something definite; any other is retriable if the protocol says so, else fatal. */
const MEANINGS: Readonly<Record<string, Meaning>> = {
  INVALID_PRODUCER_EPOCH: ['fenced', 'transaction'],
  PRODUCER_FENCED: ['fenced', 'transaction'],
  TRANSACTION_COORDINATOR_FENCED: ['retriable', 'transaction'],
  INVALID_TXN_STATE: ['retriable', 'transaction'],
  INVALID_PRODUCER_ID_MAPPING: ['retriable', 'transaction'],
  OUT_OF_ORDER_SEQUENCE_NUMBER: ['retriable', 'transaction'],
  UNKNOWN_PRODUCER_ID: ['retriable', 'transaction'],
  TRANSACTION_ABORTABLE: ['retriable', 'transaction'],
  OPERATION_NOT_ATTEMPTED: ['retriable', 'transaction'],
  INVALID_TRANSACTION_TIMEOUT: ['fatal', 'transaction'],
  CONCURRENT_TRANSACTIONS: ['retriable', 'transaction'],
  COORDINATOR_LOAD_IN_PROGRESS: ['retriable', 'broker'],
  COORDINATOR_NOT_AVAILABLE: ['retriable', 'broker'],
  NOT_COORDINATOR: ['retriable', 'broker'],
  NOT_CONTROLLER: ['retriable', 'broker'],
  TOPIC_AUTHORIZATION_FAILED: ['fatal', 'authorization'],
  GROUP_AUTHORIZATION_FAILED: ['fatal', 'authorization'],
  CLUSTER_AUTHORIZATION_FAILED: ['fatal', 'authorization'],
  TRANSACTIONAL_ID_AUTHORIZATION_FAILED: ['fatal', 'authorization'],
  SASL_AUTHENTICATION_FAILED: ['fatal', 'authentication'],
  UNSUPPORTED_SASL_MECHANISM: ['fatal', 'authentication'],
  UNKNOWN_TOPIC_OR_PARTITION: ['retriable', 'unknown_topic'],
  INVALID_TOPIC_EXCEPTION: ['fatal', 'topic_config'],
  INVALID_PARTITIONS: ['fatal', 'topic_config'],
  INVALID_REPLICATION_FACTOR: ['fatal', 'topic_config'],
  INVALID_CONFIG: ['fatal', 'topic_config'],
  POLICY_VIOLATION: ['fatal', 'topic_config'],
  MESSAGE_TOO_LARGE: ['fatal', 'record_too_large'],
  RECORD_LIST_TOO_LARGE: ['fatal', 'record_too_large'],
  UNSUPPORTED_VERSION: ['fatal', 'unsupported'],
  UNSUPPORTED_COMPRESSION_TYPE: ['fatal', 'unsupported'],
  REQUEST_TIMED_OUT: ['retriable', 'timeout'],
};

/** What the client library threw, as a KafkaError. `doing` completes the message: "cannot <doing>: <why>". */
export function kafkaError(error: unknown, doing: string): KafkaError {
  if (error instanceof KafkaError) return error;
  const chain = causes(error);
  const protocol = chain.find((one) => typeof one['apiId'] === 'string');
  if (protocol !== undefined) {
    const code = String(protocol['apiId']);
    const [kind, condition] = MEANINGS[code] ?? [protocol['canRetry'] === true ? 'retriable' : 'fatal', 'broker'];
    const said = protocol['serverErrorMessage'];
    const why = typeof said === 'string' && said !== '' ? said : String(protocol.message).replace(/\.$/, '');
    return new KafkaError(kind, condition, `cannot ${doing}: ${why} (${code})`, { code, cause: error });
  }
  const system = chain.find((one) => typeof one['code'] === 'string' && !String(one['code']).startsWith('PLT_'));
  const deepest = system ?? chain.at(-1);
  const said = deepest === undefined ? String(error) : deepest.message;
  const why = said.startsWith('Connection closed') ? CLOSED : said;
  if (chain.some((one) => one['code'] === 'PLT_KFK_AUTHENTICATION')) {
    return new KafkaError('fatal', 'authentication', `cannot ${doing}: ${why}`, { cause: error });
  }
  if (chain.some((one) => isTls(one))) return new KafkaError('fatal', 'tls', `cannot ${doing}: ${why}`, { cause: error });
  if (chain.some((one) => one.constructor.name === 'TimeoutError')) {
    return new KafkaError('retriable', 'timeout', `cannot ${doing}: ${why}`, { cause: error });
  }
  return new KafkaError('retriable', 'unreachable', `cannot ${doing}: ${why}`, { cause: error });
}

/** What the library calls a connection that ended; a broker says no more than that to a client that it takes for a stranger. */
export const CLOSED = 'the broker closed the connection';

type AnyError = Error & Readonly<Record<string, unknown>>;

/** An error, what it was caused by, and what it is made of. */
function causes(error: unknown): AnyError[] {
  const found: AnyError[] = [];
  const look = (one: unknown): void => {
    if (!(one instanceof Error) || found.includes(one as AnyError) || found.length > 50) return;
    found.push(one as AnyError);
    if (one instanceof AggregateError) for (const part of one.errors) look(part);
    look(one.cause);
  };
  look(error);
  return found;
}

function isTls(error: AnyError): boolean {
  const code = String(error['code'] ?? '');
  const ofNode = /^(ERR_TLS|ERR_SSL|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_|EPROTO|HOSTNAME_MISMATCH)/.test(code);
  return ofNode || error.message.startsWith('TLS handshake failed') || error.message.includes('secure TLS connection');
}
