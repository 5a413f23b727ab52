/**
 * An HTTP endpoint as the target of a sink.
 * Invariant: at least once, in order for each key: the requests of a batch follow one another, and the position is recorded when the last is accepted.
 * A request holds changes of one timestamp. One that may have arrived is sent again, the same, with the same id: by that the receiver can tell.
 * Signed as Standard Webhooks has it: HMAC-SHA-256 over `id.timestamp.body`, base64, after `v1,` (standardwebhooks.com, "Signature scheme"); a
 * secret `whsec_..` stands for the bytes of its base64, as in its libraries.
 */
import { createHash, createHmac } from 'node:crypto';
import type { SinkColumn } from '../../catalog/sink-model.ts';
import type { Change } from '../changes.ts';
import type { Position } from '../positions.ts';
import type { Row, RowLine } from '../row-lines.ts';
import { type Target, TargetError } from '../target.ts';

const changesInRequest = 500;
const defaultPatienceMs = 30_000;
const defaultSayAfterMs = 10_000;
/** The endpoint has read an empty request and does not want one like it: it can be reached, and nothing is known of what it thinks of others. */
const readsButRefuses: ReadonlySet<number> = new Set([400, 422]);

export interface WebhookTargetOptions {
  /** Tells this sink from others. */
  readonly name: string;
  readonly url: string;
  /** Null: requests are not signed. */
  readonly secret: string | null;
  readonly key: readonly string[] | null;
  /** A row as JSON text. */
  readonly json: (columns: readonly SinkColumn[]) => (row: Row) => string;
  /** Milliseconds of the Unix epoch. */
  readonly clock: () => number;
  /**
   * Ids of requests of a batch that were accepted. Outlives the target: a batch that failed in the middle goes on there. After a restart it is
   * sent from its beginning.
   */
  readonly accepted: Set<string>;
  /** Told that there is no answer yet. */
  readonly waits: (what: TargetError) => void;
  /** How long an answer may take; and until it is said that there is none. */
  readonly patienceMs?: number;
  readonly sayAfterMs?: number;
}

/** The key of the signatures. */
export function signingKey(secret: string): Buffer {
  return secret.startsWith('whsec_') ? Buffer.from(secret.slice('whsec_'.length), 'base64') : Buffer.from(secret, 'utf8');
}

export function webhookTarget(options: WebhookTargetOptions): Target {
  const { name, url, key, json, clock, accepted, waits, patienceMs = defaultPatienceMs, sayAfterMs = defaultSayAfterMs } = options;
  const secret = options.secret === null ? null : signingKey(options.secret);
  let encode: (row: Row) => string = () => '';
  const closing = new AbortController();
  /** Changes of one timestamp, not sent yet. */
  let waiting: Change[] = [];
  /** How often each body was sent in this batch. */
  const sent = new Map<string, number>();
  let isProven = false;

  /** Throws TargetError unless it is accepted; `alsoFine`: statuses that are no failure either. */
  const request = async (id: string, body: string, alsoFine: ReadonlySet<number> = new Set()): Promise<void> => {
    const at = String(Math.floor(clock() / 1000));
    const headers: Record<string, string> = { 'content-type': 'application/json', 'webhook-id': id, 'webhook-timestamp': at };
    if (secret !== null) {
      headers['webhook-signature'] = `v1,${createHmac('sha256', secret).update(`${id}.${at}.${body}`).digest('base64')}`;
    }
    const saying = setTimeout(() => waits(new TargetError('retriable', notAnswered(sayAfterMs))), sayAfterMs);
    let response: Response;
    try {
      response = await fetch(url, {
        method: 'POST',
        headers,
        body,
        redirect: 'error',
        signal: AbortSignal.any([closing.signal, AbortSignal.timeout(patienceMs)]),
      });
      await response.arrayBuffer();
    } catch (error) {
      throw new TargetError('retriable', unreachable(error, patienceMs), { cause: error });
    } finally {
      clearTimeout(saying);
    }
    const { ok, status, statusText } = response;
    if (ok || alsoFine.has(status)) return;
    const retriable = status === 408 || status === 429 || status >= 500;
    throw new TargetError(retriable ? 'retriable' : 'permanent', `the webhook answers ${status} ${statusText}`.trim());
  };
  /** Throws TargetError. */
  const post = async (changes: readonly Change[]): Promise<number> => {
    const ts = changes[0]?.ts ?? 0;
    const text = (row: RowLine | null): string => (row === null ? 'null' : encode(row.values()));
    const messages = changes.map(({ before, after }) => `{"before":${text(before)},"after":${text(after)}}`);
    const body = `{"sink":${JSON.stringify(name)},"timestamp":${ts},"changes":[${messages.join(',')}]}`;
    const hash = createHash('sha256').update(body).digest('hex').slice(0, 32);
    const nth = (sent.get(hash) ?? 0) + 1;
    sent.set(hash, nth);
    const id = `${ts}-${hash}-${nth}`;
    if (accepted.has(id)) return 0;
    await request(id, body);
    accepted.add(id);
    isProven = true;
    return Buffer.byteLength(body);
  };
  const flush = async (): Promise<number> => {
    const changes = waiting;
    waiting = [];
    return changes.length === 0 ? 0 : await post(changes);
  };

  return {
    pairing: key === null ? 'each' : 'pair',
    async open() {
      return null;
    },
    async describe(columns) {
      encode = json(columns);
    },
    async begin() {
      waiting = [];
      sent.clear();
    },
    async write(changes) {
      let bytes = 0;
      for (const change of changes) {
        if (waiting.length >= changesInRequest || (waiting.length > 0 && waiting[0]?.ts !== change.ts)) bytes += await flush();
        waiting.push(change);
      }
      return bytes;
    },
    async prove() {
      if (isProven) return;
      const at = clock();
      const body = `{"sink":${JSON.stringify(name)},"timestamp":${at},"changes":[]}`;
      await request(`${at}-empty`, body, readsButRefuses);
      isProven = true;
    },
    async commit(_: Position) {
      await flush();
      accepted.clear();
    },
    async close() {
      closing.abort();
    },
  };
}

const notAnswered = (ms: number): string => `the webhook has not answered within ${ms / 1000} s`;

function unreachable(error: unknown, patienceMs: number): string {
  if (error instanceof Error && error.name === 'TimeoutError') return notAnswered(patienceMs);
  const cause: unknown = error instanceof Error ? error.cause : undefined;
  // Of several addresses that were tried, each has its error.
  const reason = cause instanceof AggregateError && cause.errors[0] instanceof Error ? cause.errors[0] : cause;
  return `the webhook cannot be reached: ${reason instanceof Error ? reason.message : String(error)}`;
}
