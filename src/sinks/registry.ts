/**
 * Client of a schema registry that speaks Confluent's REST interface.
 * Invariant: a schema that was registered once has the same number for ever, so numbers are remembered and asked for once.
 */

import { request as overHttp } from 'node:http';
import type { RequestOptions } from 'node:https';
import { request as overHttps } from 'node:https';

/** Where a registry is and how to log in. */
export interface RegistryAddress {
  /** `http://` or `https://`; a path in it is kept, as some registries have one. */
  readonly url: string;
  readonly login: { readonly username: string; readonly password: string } | null;
  /** PEM each; without `ca` the authorities of Node count. */
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string; readonly verify: boolean } | null;
  /** How long to wait for an answer; default 15 s. */
  readonly timeoutMs?: number;
}

export type CompatibilityLevel =
  | 'BACKWARD'
  | 'BACKWARD_TRANSITIVE'
  | 'FORWARD'
  | 'FORWARD_TRANSITIVE'
  | 'FULL'
  | 'FULL_TRANSITIVE'
  | 'NONE';

/** What is wrong: whether trying again may help, and what the registry said. */
export type RegistryFailure = 'unreachable' | 'authentication' | 'incompatible' | 'invalid_schema' | 'not_found' | 'registry';

/** A failure of a conversation with a registry. */
export class RegistryError extends Error {
  override readonly name = 'RegistryError';
  readonly failure: RegistryFailure;
  /** Status of HTTP, where there was an answer. */
  readonly status: number | undefined;

  constructor(failure: RegistryFailure, message: string, options: { status?: number; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.failure = failure;
    this.status = options.status;
  }
}

export type Compatibility = { readonly compatible: true } | { readonly compatible: false; readonly reasons: readonly string[] };

export interface SchemaRegistry {
  /** Asks something that changes nothing; throws what is wrong. */
  probe(): Promise<void>;
  /** The number of the schema under this subject: of a new version if it is not there yet. */
  register(subject: string, schema: object): Promise<number>;
  /** Whether the schema could become the next version of the subject. A subject without versions takes any. */
  checkCompatibility(subject: string, schema: object): Promise<Compatibility>;
  /** The schema that has this number. */
  getById(id: number): Promise<unknown>;
  /** Whether the subject has a version. */
  exists(subject: string): Promise<boolean>;
  /** Which schemas the subject takes from now on. */
  setCompatibility(subject: string, level: CompatibilityLevel): Promise<void>;
}

/** Makes a client. Nothing is sent. */
export function schemaRegistry(address: RegistryAddress): SchemaRegistry {
  const numbers = new Map<string, Promise<number>>();
  const subjectPath = (subject: string): string => `/subjects/${encodeURIComponent(subject)}`;

  const registerNew = async (subject: string, schema: string): Promise<number> => {
    const answer = await ask(address, 'POST', `${subjectPath(subject)}/versions`, { schema }, `register a schema for subject "${subject}"`);
    if (typeof answer !== 'object' || answer === null || !('id' in answer) || typeof answer.id !== 'number') {
      throw new RegistryError('registry', `the schema registry gave no number for subject "${subject}"`);
    }
    return answer.id;
  };

  return {
    async probe() {
      await ask(address, 'GET', '/subjects', undefined, 'list subjects');
    },
    register(subject, schema) {
      const text = JSON.stringify(schema);
      const key = `${subject}\n${text}`;
      const known = numbers.get(key);
      if (known !== undefined) return known;
      const asking = registerNew(subject, text);
      numbers.set(key, asking);
      asking.catch(() => numbers.delete(key));
      return asking;
    },
    async checkCompatibility(subject, schema) {
      const path = `/compatibility${subjectPath(subject)}/versions/latest?verbose=true`;
      const doing = `check a schema for subject "${subject}"`;
      try {
        const answer = await ask(address, 'POST', path, { schema: JSON.stringify(schema) }, doing);
        return compatibilityIn(answer);
      } catch (error) {
        if (error instanceof RegistryError && error.failure === 'not_found') return { compatible: true };
        throw error;
      }
    },
    async getById(id) {
      const answer = await ask(address, 'GET', `/schemas/ids/${id}`, undefined, `get schema ${id}`);
      if (typeof answer !== 'object' || answer === null || !('schema' in answer) || typeof answer.schema !== 'string') {
        throw new RegistryError('registry', `the schema registry answered without schema ${id}`);
      }
      return JSON.parse(answer.schema) as unknown;
    },
    async exists(subject) {
      try {
        await ask(address, 'GET', `${subjectPath(subject)}/versions`, undefined, `look for subject "${subject}"`);
        return true;
      } catch (error) {
        if (error instanceof RegistryError && error.failure === 'not_found') return false;
        throw error;
      }
    },
    async setCompatibility(subject, level) {
      const path = `/config/${encodeURIComponent(subject)}`;
      await ask(address, 'PUT', path, { compatibility: level }, `set the compatibility of subject "${subject}"`);
    },
  };
}

function compatibilityIn(answer: unknown): Compatibility {
  const fields: { readonly is_compatible?: unknown; readonly messages?: unknown } =
    typeof answer === 'object' && answer !== null ? answer : {};
  if (fields.is_compatible === true) return { compatible: true };
  return { compatible: false, reasons: Array.isArray(fields.messages) ? fields.messages.map(String) : [] };
}

const MEDIA_TYPE = 'application/vnd.schemaregistry.v1+json';

/** One request. Node's own module and not `fetch`, which cannot be given an authority or a client certificate. */
async function ask(address: RegistryAddress, method: string, path: string, body: object | undefined, doing: string): Promise<unknown> {
  const url = new URL(address.url.replace(/\/+$/, '') + path);
  const { login, tls } = address;
  const payload = body === undefined ? undefined : JSON.stringify(body);
  const options: RequestOptions = {
    method,
    // A connection of its own: one that was kept may have been closed over there in the meantime, and requests are few.
    agent: false,
    headers: {
      accept: `${MEDIA_TYPE}, application/json`,
      ...(payload === undefined ? {} : { 'content-type': MEDIA_TYPE, 'content-length': Buffer.byteLength(payload) }),
    },
    ...(login === null ? {} : { auth: `${login.username}:${login.password}` }),
    ...(tls === null ? {} : { ca: tls.ca, cert: tls.cert, key: tls.key, rejectUnauthorized: tls.verify }),
  };
  const failed = `cannot ${doing} in the schema registry`;
  const { status, text } = await send(url, options, payload, address.timeoutMs ?? 15_000).catch((error: unknown) => {
    const why = error instanceof Error ? firstMessage(error) : String(error);
    throw new RegistryError('unreachable', `${failed}: ${why}`, { cause: error });
  });
  const answer = parsed(text);
  if (status >= 200 && status < 300) return answer;
  const said = messageIn(answer) ?? (text.trim().slice(0, 200) || 'no reason given');
  throw new RegistryError(failureOf(status), `${failed}: ${said} (HTTP ${status})`, { status });
}

function send(
  url: URL,
  options: RequestOptions,
  payload: string | undefined,
  timeoutMs: number,
): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.timeout(timeoutMs);
    const request = (url.protocol === 'https:' ? overHttps : overHttp)(url, { ...options, signal }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() }));
      response.on('error', reject);
    });
    request.on('error', (error) => reject(signal.aborted ? new Error(`no answer within ${timeoutMs} ms`, { cause: error }) : error));
    request.end(payload);
  });
}

function failureOf(status: number): RegistryFailure {
  switch (status) {
    case 401:
    case 403:
      return 'authentication';
    case 404:
      return 'not_found';
    case 409:
      return 'incompatible';
    case 422:
      return 'invalid_schema';
    default:
      return 'registry';
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function messageIn(answer: unknown): string | undefined {
  if (typeof answer !== 'object' || answer === null || !('message' in answer)) return undefined;
  return typeof answer.message === 'string' ? answer.message : undefined;
}

/** An attempt at several addresses fails with an empty message and the reasons inside. */
function firstMessage(error: Error): string {
  if (error.message !== '' || !(error instanceof AggregateError)) return error.message;
  const [first] = error.errors;
  return first instanceof Error ? first.message : 'connection failed';
}
