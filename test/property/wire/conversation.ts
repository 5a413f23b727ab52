/** One whole conversation with a server, as bytes in and bytes out. */
import { connect } from 'node:net';
import { message } from '../../../src/wire/encode.ts';
import { startupPacket } from '../../integration/wire/raw-client.ts';

export interface Conversation {
  /** Everything the server said behind its first ReadyForQuery. */
  readonly bytes: Buffer;
  /** No answer came for a long time, so it was cut off. */
  readonly stalled: boolean;
}

export interface ConversationOptions {
  readonly database?: string;
  /** Of the protocol: 3.`minor`. */
  readonly minor?: number;
  /** How long to wait for an answer, in ms. */
  readonly patience?: number;
  /** Between two chunks; default: a turn of the event loop. */
  readonly between?: () => Promise<void>;
}

/** Starts a session, sends the chunks one by one and then Terminate; resolves with what came back when the connection has ended. */
export function converse(port: number, chunks: readonly Buffer[], options: ConversationOptions = {}): Promise<Conversation> {
  const between = options.between ?? (() => new Promise<void>((next) => setImmediate(next)));
  return new Promise((resolve) => {
    const startup = startupPacket({ user: 'postgres', database: options.database ?? 'postgres', application_name: 'd' });
    startup.writeInt32BE(196608 + (options.minor ?? 0), 4);
    const socket = connect({ port, host: '127.0.0.1', noDelay: true });
    const heard: Buffer[] = [];
    let greeting: Buffer | null = Buffer.alloc(0);
    let stalled = false;
    const talk = async (): Promise<void> => {
      for (const chunk of chunks) {
        socket.write(chunk);
        await between();
      }
      socket.end(message(0x58, []));
    };
    socket.on('data', (bytes) => {
      if (greeting === null) {
        heard.push(bytes);
        return;
      }
      greeting = Buffer.concat([greeting, bytes]);
      if (greeting.subarray(-6).toString('latin1') !== 'Z\0\0\0\x05I') return;
      greeting = null;
      void talk();
    });
    // The server may hang up in the middle of what is said to it.
    socket.on('error', () => undefined);
    socket.setTimeout(options.patience ?? 5000, () => {
      stalled = true;
      socket.destroy();
    });
    socket.on('close', () => resolve({ bytes: Buffer.concat(heard), stalled }));
    socket.write(startup);
  });
}

/** The bytes cut into pieces of these lengths, again and again from the first. */
export function cut(bytes: Buffer, lengths: readonly number[]): Buffer[] {
  const chunks: Buffer[] = [];
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const length = lengths[i % Math.max(1, lengths.length)] ?? bytes.length;
    chunks.push(bytes.subarray(at, at + length));
    at += length;
  }
  return chunks;
}
