/** An HTTP server that a webhook sink posts to, and that answers as a test wants it to. */
import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface WebhookChange {
  readonly before: Record<string, unknown> | null;
  readonly after: Record<string, unknown> | null;
}

export interface WebhookRequest {
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
  readonly timestamp: number;
  readonly changes: readonly WebhookChange[];
  /** performance.now() when it came. */
  readonly at: number;
  /** What it was answered; 0: the connection was reset. */
  readonly status: number;
}

export interface WebhookReceiver {
  readonly url: string;
  readonly port: number;
  /** Every request, also those that were refused. */
  readonly requests: WebhookRequest[];
  /** Status of the next answers: 0 resets the connection before, -1 after the request was taken. May wait. Default: 204. */
  answer: (request: { readonly body: string; readonly nth: number }) => number | Promise<number>;
  stop(): Promise<void>;
}

export async function startWebhookReceiver(port = 0): Promise<WebhookReceiver> {
  const requests: WebhookRequest[] = [];
  let nth = 0;
  const server = createServer((incoming, outgoing) => {
    const parts: Buffer[] = [];
    incoming.on('error', () => undefined);
    incoming.on('data', (part: Buffer) => parts.push(part));
    incoming.on('end', async () => {
      const body = Buffer.concat(parts).toString();
      const at = performance.now();
      const status = await receiver.answer({ body, nth: nth++ });
      const { timestamp, changes } = JSON.parse(body) as { timestamp: number; changes: WebhookChange[] };
      requests.push({ headers: incoming.headers, body, timestamp, changes, at, status: status === -1 ? 204 : status });
      if (status <= 0) incoming.socket.resetAndDestroy();
      else outgoing.writeHead(status).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
  const listening = (server.address() as AddressInfo).port;
  const receiver: WebhookReceiver = {
    url: `http://127.0.0.1:${listening}/hook`,
    port: listening,
    requests,
    answer: () => 204,
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return receiver;
}
