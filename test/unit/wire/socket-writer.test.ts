import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { handleAccess, handleOf } from '../../../src/wire/socket-handle.ts';
import { type SocketWriter, socketWriter } from '../../../src/wire/socket-writer.ts';
import { type PeerSocket, withStaticReader } from '../../../src/wire/static-reader.ts';

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup();
});

/** An accepted socket, as a client's is taken on, and the other end of it. */
async function pair(): Promise<{ peer: PeerSocket; writer: SocketWriter; far: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const far = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const [accepted] = (await once(server, 'connection')) as [Socket];
  server.close();
  const peer = withStaticReader(accepted);
  peer.socket.on('error', () => peer.socket.destroy());
  far.on('error', () => far.destroy());
  far.pause();
  cleanups.push(() => {
    far.destroy();
    peer.socket.destroy();
  });
  return { peer, writer: socketWriter(peer), far };
}

/** All that comes up to the end. */
async function received(far: Socket): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of far) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

/** Numbered, so that a piece out of order shows. */
function numbered(from: number, count: number): Buffer {
  const bytes = Buffer.alloc(4 * count);
  for (let i = 0; i < count; i++) bytes.writeUInt32BE(from + i, 4 * i);
  return bytes;
}

/** Pieces numbered on and on. */
function numbers(): { next(count: number): Buffer; readonly sent: number } {
  let sent = 0;
  return {
    next(count) {
      sent += count;
      return numbered(sent - count, count);
    },
    get sent() {
      return sent;
    },
  };
}

const intact = (bytes: Buffer): boolean => bytes.equals(numbered(0, bytes.length / 4));

describe('writing past the stream', () => {
  it('is possible with this version of Node: without it the proxy is slower, and this test says so', async () => {
    const { peer } = await pair();
    expect(handleAccess).not.toBeNull();
    expect(peer.reader).not.toBeNull();
    expect(handleOf(peer.socket)).not.toBeNull();
  });

  it('tells when a peer does not read, and goes on when it does', async () => {
    const { peer, writer, far } = await pair();
    const pieces = numbers();
    while (writer.write(pieces.next(10_000)));
    expect(writer.pending).toBeGreaterThan(0);
    expect(writer.isFull).toBe(true);
    // One that does not listen is not forgotten either.
    writer.write(pieces.next(10_000));
    const pending = writer.pending;
    await sleep(50);
    expect(writer.pending).toBe(pending);
    const drained = once(peer.socket, 'drain');
    const all = received(far);
    await drained;
    expect(writer.pending).toBe(0);
    expect(writer.isFull).toBe(false);
    writer.write(pieces.next(3));
    peer.socket.end();
    const bytes = await all;
    expect(bytes.length).toBe(4 * pieces.sent);
    expect(intact(bytes)).toBe(true);
  });

  it('comes behind what the stream still has', async () => {
    const { peer, writer, far } = await pair();
    const pieces = numbers();
    while (peer.socket.writableLength === 0) peer.socket.write(pieces.next(10_000));
    peer.socket.write(pieces.next(10_000));
    expect(writer.pending).toBe(peer.socket.writableLength);
    writer.write(pieces.next(5));
    const all = received(far);
    while (writer.pending > 0) await sleep(1);
    writer.write(pieces.next(5));
    peer.socket.end(pieces.next(1));
    const bytes = await all;
    expect(bytes.length).toBe(4 * pieces.sent);
    expect(intact(bytes)).toBe(true);
  });

  it('delivers last words behind what was not taken yet', async () => {
    const { peer, writer, far } = await pair();
    const pieces = numbers();
    do writer.write(pieces.next(50_000));
    while (writer.pending === 0);
    peer.socket.end(pieces.next(1));
    const bytes = await received(far);
    expect(bytes.length).toBe(4 * pieces.sent);
    expect(intact(bytes)).toBe(true);
  });

  it('ends the connection when the peer has hung up, and does not throw', async () => {
    const { peer, writer, far } = await pair();
    const errors: NodeJS.ErrnoException[] = [];
    peer.socket.on('error', (error) => errors.push(error));
    while (writer.write(numbered(0, 10_000)));
    far.resetAndDestroy();
    await new Promise((resolve) => peer.socket.once('close', resolve));
    expect(errors.map(({ code }) => code)).toEqual([expect.stringMatching(/^(EPIPE|ECONNRESET)$/)]);
    writer.write(numbered(0, 1));
    expect(peer.socket.destroyed).toBe(true);
  });

  it('says nothing to a peer whose connection is over, and does not throw (a worker ended when its upstream was killed)', async () => {
    const { peer, writer } = await pair();
    writer.write(numbered(0, 1));
    peer.socket.destroy();
    expect(writer.write(numbered(0, 1))).toBe(true);
    await once(peer.socket, 'close');
    await sleep(10);
    expect(writer.write(numbered(0, 1))).toBe(true);
    expect(writer.isFull).toBe(false);
  });

  it('hands on what was read in order, whatever memory it was read into', async () => {
    const { peer, far } = await pair();
    const pieces: Buffer[] = [];
    const reader = peer.reader;
    if (reader === null) throw new Error('no reader');
    let turn = 0;
    reader.receive = (chunk) => {
      // Every third piece is kept as it is: its memory must not be read into again.
      const kept = turn++ % 3 === 0;
      pieces.push(kept ? chunk : Buffer.from(chunk));
      return kept;
    };
    peer.socket.resume();
    for (let i = 0; i < 400; i++) {
      far.write(numbered(50 * i, 50));
      if (i % 7 === 0) await sleep(1);
    }
    far.end();
    await once(peer.socket, 'end');
    const bytes = Buffer.concat(pieces);
    expect(bytes.length).toBe(4 * 50 * 400);
    expect(intact(bytes)).toBe(true);
  });
});
