/**
 * /healthz, /readyz and /metrics.
 * Invariant: answers from what is known already, so that a stuck upstream or child cannot make a probe hang.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { HostPort } from '../config-loading.ts';
import { type ChildSamples, processMetrics, renderSamples } from './metrics.ts';

/** What the main process knows at this moment. */
export interface ServiceState {
  /** Whether the proxy takes connections. */
  readonly serving: boolean;
  /** What keeps Millrace from being ready, in words; empty when nothing does. */
  readonly missing: readonly string[];
  readonly samples: readonly ChildSamples[];
}

export interface HttpServer {
  readonly port: number;
  close(): Promise<void>;
}

interface Answer {
  readonly status: number;
  readonly type?: string;
  readonly body: string;
}

/** Starts the HTTP server. Rejects with the system's error when the address cannot be bound. */
export async function startHttp(listen: HostPort, state: () => ServiceState): Promise<HttpServer> {
  const registry = processMetrics();
  const routes: Readonly<Record<string, () => Answer | Promise<Answer>>> = {
    '/healthz': () => (state().serving ? { status: 200, body: 'ok\n' } : { status: 503, body: 'the proxy does not serve\n' }),
    '/readyz': () => {
      const { missing } = state();
      return {
        status: missing.length === 0 ? 200 : 503,
        type: 'application/json',
        body: `${JSON.stringify({ ready: missing.length === 0, missing })}\n`,
      };
    },
    '/metrics': async () => ({
      status: 200,
      type: registry.contentType,
      body: `${await registry.metrics()}\n${renderSamples(state().samples)}`,
    }),
  };
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const path = (request.url ?? '/').replace(/[?#].*$/s, '');
    const route = Object.hasOwn(routes, path) ? routes[path] : undefined;
    const readable = request.method === 'GET' || request.method === 'HEAD';
    const reply: Answer =
      route === undefined ? { status: 404, body: 'not found\n' } : readable ? await route() : { status: 405, body: 'only GET and HEAD\n' };
    const headers = {
      'content-type': reply.type ?? 'text/plain; charset=utf-8',
      'content-length': Buffer.byteLength(reply.body),
      'cache-control': 'no-store',
    };
    response.writeHead(reply.status, reply.status === 405 ? { ...headers, allow: 'GET, HEAD' } : headers);
    response.end(request.method === 'HEAD' ? undefined : reply.body);
  };
  const server = createServer(
    { maxHeaderSize: 8_192, headersTimeout: 5_000, requestTimeout: 10_000, keepAliveTimeout: 5_000, connectionsCheckingInterval: 2_000 },
    (request, response) => {
      // Nobody has reason to send a body here.
      request.resume();
      answer(request, response).catch(() => {
        if (!response.headersSent) response.writeHead(500);
        response.end();
      });
    },
  );
  server.maxConnections = 256;
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(listen.port, listen.host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  const bound = server.address();
  return {
    port: bound !== null && typeof bound === 'object' ? bound.port : listen.port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
