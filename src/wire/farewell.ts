/** How a client is let go. Invariant: it hears why before its connection ends, and one that does not hang up then is cut off. */
import type { Socket } from 'node:net';
import type { ErrorFields } from '../errors.ts';
import { type Charset, errorResponse } from './encode.ts';

/** A peer that was told goodbye and does not hang up is cut off. */
const lingerTime = 5_000;

/** Tells the client why it has to go. */
export function sayGoodbye(client: Socket, error: ErrorFields, charset: Charset): void {
  client.end(errorResponse(error, charset, 'FATAL'));
}

/** Waits for the client to read what it was told, and some time for it to hang up. */
export function linger(client: Socket): void {
  const cut = (): void => {
    const timer = setTimeout(() => client.destroy(), lingerTime);
    client.once('close', () => clearTimeout(timer));
  };
  if (client.writableFinished) cut();
  else if (!client.destroyed) client.once('finish', cut);
}
