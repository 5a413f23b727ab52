/** TCP ports of this machine. Invariant: nothing stays bound. */
import { createServer } from 'node:net';

/** A port on `host` that is free at this moment: `preferred` when it is, else one the system picks. */
export async function freePort(host: string, preferred?: number): Promise<number> {
  if (preferred !== undefined) {
    try {
      return await tryBind(host, preferred);
    } catch {
      // Taken since the last start: another one has to do.
    }
  }
  return await tryBind(host, 0);
}

/** Binds and releases a port; rejects with the system's error (EADDRINUSE, EACCES, EADDRNOTAVAIL) when that cannot be done. */
export function tryBind(host: string, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen({ host, port, exclusive: true }, () => {
      const address = server.address();
      const bound = address !== null && typeof address === 'object' ? address.port : port;
      server.close(() => resolve(bound));
    });
  });
}
