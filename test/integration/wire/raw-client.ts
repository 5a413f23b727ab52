/** A client that speaks the protocol by the message, so that tests see exactly what comes back. */
import { connect, type Socket } from 'node:net';

export interface RawMessage {
  readonly tag: string;
  readonly body: Buffer;
}

export class RawClient {
  readonly #socket: Socket;
  #buffer: Buffer = Buffer.alloc(0);
  readonly #messages: RawMessage[] = [];
  #wake: () => void = () => undefined;
  ended = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.ended = true;
      this.#wake();
    });
  }

  /** Connects and starts a session without a password; resolves at the first ReadyForQuery. */
  static async open(port: number, parameters: Readonly<Record<string, string>> = {}): Promise<RawClient> {
    const client = await RawClient.connect(port);
    client.write(startupPacket({ user: 'postgres', database: 'postgres', ...parameters }));
    await client.until('Z');
    return client;
  }

  /** A client on a connection that stands, TLS for instance. */
  static over(socket: Socket): RawClient {
    return new RawClient(socket);
  }

  static connect(port: number): Promise<RawClient> {
    return new Promise((resolve, reject) => {
      const socket = connect({ port, host: '127.0.0.1', noDelay: true });
      socket.once('error', reject);
      socket.once('connect', () => resolve(new RawClient(socket)));
    });
  }

  write(...parts: readonly Buffer[]): void {
    this.#socket.write(Buffer.concat(parts));
  }

  end(): void {
    this.#socket.end();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  /** Messages up to and with the `count`-th one of this tag, or up to the end of the connection. */
  async until(tag: string, count = 1): Promise<RawMessage[]> {
    const found: RawMessage[] = [];
    for (let left = count; ; ) {
      const message = this.#messages.shift();
      if (message !== undefined) {
        found.push(message);
        if (message.tag === tag && --left === 0) return found;
      } else if (this.ended) {
        return found;
      } else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    }
  }

  #read(chunk: Buffer): void {
    this.#buffer = Buffer.concat([this.#buffer, chunk]);
    while (this.#buffer.length >= 5) {
      const end = 1 + this.#buffer.readInt32BE(1);
      if (this.#buffer.length < end) break;
      this.#messages.push({ tag: String.fromCharCode(this.#buffer.readUInt8(0)), body: this.#buffer.subarray(5, end) });
      this.#buffer = this.#buffer.subarray(end);
    }
    this.#wake();
  }
}

export function startupPacket(parameters: Readonly<Record<string, string>>): Buffer {
  const body = `${Object.entries(parameters)
    .map(([name, value]) => `${name}\0${value}\0`)
    .join('')}\0`;
  const packet = Buffer.alloc(8 + Buffer.byteLength(body));
  packet.writeInt32BE(packet.length, 0);
  packet.writeInt32BE(196608, 4);
  packet.write(body, 8);
  return packet;
}

/** One line a message: the tag and what matters of the body. */
export function shown(messages: readonly RawMessage[]): string[] {
  return messages.map(({ tag, body }) => {
    switch (tag) {
      case 'C':
        return `C ${body.toString('utf8', 0, body.length - 1)}`;
      case 'Z':
        return `Z ${body.toString('latin1')}`;
      case 'E':
      case 'N': {
        const fields = new Map(
          body
            .toString('utf8')
            .split('\0')
            .map((field) => [field.charAt(0), field.slice(1)]),
        );
        const position = fields.get('P');
        return `${tag} ${fields.get('S')} ${fields.get('C')} ${fields.get('M')}${position === undefined ? '' : ` @${position}`}`;
      }
      case 'D': {
        const values: string[] = [];
        let at = 2;
        for (let left = body.readUInt16BE(0); left > 0; left--) {
          const length = body.readInt32BE(at);
          at += 4;
          values.push(length < 0 ? 'NULL' : body.toString('utf8', at, at + length));
          at += Math.max(0, length);
        }
        return `D ${values.join('|')}`;
      }
      case 'T': {
        const names: string[] = [];
        let at = 2;
        for (let left = body.readUInt16BE(0); left > 0; left--) {
          const end = body.indexOf(0, at);
          names.push(`${body.toString('utf8', at, end)}${body.readUInt16BE(end + 17) === 1 ? ':binary' : ''}`);
          at = end + 19;
        }
        return `T ${names.join('|')}`;
      }
      default:
        return tag;
    }
  });
}
