import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { createLogger } from '../../../src/log.ts';
import { type Door, openDoor, type Taker } from '../../../src/server/door.ts';

const doors: Door[] = [];
const clients: Socket[] = [];
afterEach(() => {
  for (const door of doors.splice(0)) door.close();
  for (const client of clients.splice(0)) client.destroy();
});

/** Takes what it is given, or not; and says so only when told. */
interface TestTaker extends Taker {
  isThere: boolean;
  readonly taken: Socket[];
  settle: () => void;
}

function taker(settlesAtOnce: boolean): TestTaker {
  const one: TestTaker = {
    isThere: true,
    taken: [],
    settle: () => undefined,
    take(connection, settled) {
      if (!one.isThere) return false;
      one.taken.push(connection);
      one.settle = settled;
      if (settlesAtOnce) setImmediate(settled);
      return true;
    },
  };
  return one;
}

async function open(takers: readonly Taker[]): Promise<Door> {
  const door = await openDoor({ host: '127.0.0.1', port: 0 }, takers, createLogger('test'));
  doors.push(door);
  return door;
}

async function come(door: Door, count: number): Promise<Socket[]> {
  const all: Socket[] = [];
  for (let i = 0; i < count; i++) {
    const client = connect({ port: door.port, host: '127.0.0.1' });
    client.on('error', () => client.destroy());
    await once(client, 'connect');
    clients.push(client);
    all.push(client);
  }
  await sleep(20);
  return all;
}

describe('the door', () => {
  it('gives connections to each in turn', async () => {
    const takers = [taker(true), taker(true), taker(true)];
    await come(await open(takers), 9);
    expect(takers.map(({ taken }) => taken.length)).toEqual([3, 3, 3]);
  });

  it('gives one at a time to each: who hangs holds up one client, and the others go elsewhere', async () => {
    const [hangs, works] = [taker(false), taker(true)];
    await come(await open([hangs, works]), 6);
    expect([hangs.taken.length, works.taken.length]).toEqual([1, 5]);
    hangs.settle();
    expect(hangs.taken.length).toBe(1);
  });

  it('keeps who comes while nobody can take them, in their order', async () => {
    const one = taker(true);
    one.isThere = false;
    const door = await open([one]);
    const first = await come(door, 3);
    expect(one.taken).toEqual([]);
    one.isThere = true;
    door.knock();
    await sleep(20);
    expect(one.taken.map(({ remotePort }) => remotePort)).toEqual(first.map(({ localPort }) => localPort));
  });

  it('ends those that wait when it closes, and refuses others', async () => {
    const one = taker(true);
    one.isThere = false;
    const door = await open([one]);
    const [waits] = await come(door, 1);
    const ended = once(waits as Socket, 'close');
    (waits as Socket).resume();
    door.close();
    await ended;
    const late = connect({ port: door.port, host: '127.0.0.1' });
    expect((await once(late, 'error'))[0]).toMatchObject({ code: 'ECONNREFUSED' });
  });

  it('rejects when the port is taken', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    await once(other, 'listening');
    const { port } = other.address() as { port: number };
    await expect(openDoor({ host: '127.0.0.1', port }, [], createLogger('test'))).rejects.toMatchObject({ code: 'EADDRINUSE' });
    other.close();
  });
});
