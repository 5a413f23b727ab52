/** The less travelled parts of the protocol, on the oldest and the newest server: what comes back is what the server itself says. */
import { connect } from 'node:net';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { bind, close, describe as describeMessage, execute, flush, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { startProxy, type TestProxy } from './proxy.ts';
import { RawClient, type RawMessage, shown, startupPacket } from './raw-client.ts';

const q = (sql: string): Buffer => query(sql, 'utf8');
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** A startup packet of protocol 3.`minor`. */
function startup(minor: number, parameters: Readonly<Record<string, string>> = {}): Buffer {
  const packet = startupPacket({ user: 'postgres', database: 'postgres', ...parameters });
  packet.writeInt32BE(196608 + minor, 4);
  return packet;
}

/** Messages as they can be compared between two sessions: of a key only the length, of the process that notifies nothing. */
function comparable(messages: readonly RawMessage[]): string[] {
  return messages.map(({ tag, body }) => {
    if (tag === 'K') return `K ${body.length}`;
    return tag === 'A' ? `A ${body.toString('latin1', 4)}` : `${tag} ${body.toString('latin1')}`;
  });
}

describe.each<PostgresMajor>([15, 18])('PostgreSQL %i', (version) => {
  let postgres: TestPostgres;
  let proxy: TestProxy;
  let direct: pg.Client;
  const open: RawClient[] = [];

  beforeAll(async () => {
    postgres = await startPostgres({ version });
    proxy = await startProxy(postgres.address);
    direct = new pg.Client(postgres.url);
    await direct.connect();
  });
  afterAll(async () => {
    await direct?.end();
    await proxy?.stop(0);
    await postgres?.stop();
  });
  afterEach(() => {
    for (const client of open.splice(0)) client.destroy();
  });

  async function client(port = proxy.port): Promise<RawClient> {
    const one = await RawClient.open(port);
    open.push(one);
    return one;
  }

  /** What is said up to the first ReadyForQuery, or the end. */
  async function greeting(port: number, packet: Buffer): Promise<RawMessage[]> {
    const one = await RawClient.connect(port);
    open.push(one);
    one.write(packet);
    return await one.until('Z');
  }

  /** The replies of both to the same bytes, when `last` came so many times. */
  async function both(bytes: Buffer, last = 'Z', count = 1): Promise<{ proxied: string[]; expected: string[] }> {
    const answers: string[][] = [];
    for (const port of [postgres.port, proxy.port]) {
      const one = await client(port);
      one.write(bytes);
      answers.push(comparable(await one.until(last, count)));
    }
    return { expected: answers[0] ?? [], proxied: answers[1] ?? [] };
  }

  async function same(bytes: Buffer, last = 'Z', count = 1): Promise<string[]> {
    const { expected, proxied } = await both(bytes, last, count);
    expect(proxied).toEqual(expected);
    return proxied;
  }

  it.each([
    ['3.0', 0, {}],
    ['3.2', 2, {}],
    ['3.2 with options nobody knows', 2, { '_pq_.one': '1', '_pq_.two': 'x' }],
    ['3.0 with an option nobody knows', 0, { '_pq_.one': '1' }],
    ['3.9', 9, {}],
    [
      '3.0 with all kinds of parameters',
      0,
      { application_name: 'ä', DateStyle: 'German', extra_float_digits: '0', options: '-c work_mem=77kB' },
    ],
    ['3.0 with a parameter that does not exist', 0, { no_such: '1' }],
    ['3.0 with a database that does not exist', 0, { database: 'none' }],
    ['3.0 with options that are wrong', 0, { options: '-c work_mem=x' }],
    ['4.0', 65_536, {}],
  ] as [string, number, Record<string, string>][])('starts up: %s', async (_, minor, parameters) => {
    const expected = comparable(await greeting(postgres.port, startup(minor, parameters)));
    expect(expected.length).toBeGreaterThan(0);
    expect(comparable(await greeting(proxy.port, startup(minor, parameters)))).toEqual(expected);
    if (minor === 2 && version === 18) expect(expected).toContain('K 36');
    if (minor === 9) expect(expected.some((line) => line.startsWith('v'))).toBe(true);
  });

  it('uses the options of the startup packet', async () => {
    const one = await RawClient.open(proxy.port, { options: '-c work_mem=77kB -c search_path=a,\\ b', TimeZone: 'Asia/Tokyo' });
    open.push(one);
    one.write(q("SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('timezone')"));
    expect(shown(await one.until('Z'))).toContain('D 77kB|a, b|Asia/Tokyo');
  });

  it('cancels by the key as it was given, and by no other', async () => {
    const one = await RawClient.connect(proxy.port);
    open.push(one);
    one.write(startup(2));
    const key = (await one.until('Z')).find((reply) => reply.tag === 'K')?.body ?? Buffer.alloc(0);
    one.write(q('SELECT pg_sleep(20)'));
    await pause(50);
    const wrong = Buffer.from(key);
    wrong[wrong.length - 1] = (wrong[wrong.length - 1] ?? 0) ^ 1;
    for (const secret of [wrong, wrong.subarray(0, 7), key]) {
      const canceller = await RawClient.connect(proxy.port);
      const head = Buffer.from([0, 0, 0, 8 + secret.length, 0x04, 0xd2, 0x16, 0x2e]);
      canceller.write(head, secret);
      await canceller.until('never');
    }
    expect(shown(await one.until('Z'))).toEqual(['T pg_sleep', 'E ERROR 57014 canceling statement due to user request', 'Z I']);
  });

  it('reports parameters whenever they change', async () => {
    const one = await client();
    await direct.query("ALTER SYSTEM SET DateStyle = 'German'");
    await direct.query('SELECT pg_reload_conf()');
    // The server says so by itself, to a session that asks nothing, or with the next answer.
    await pause(100);
    one.write(q('SELECT 1'));
    const heard = await one.until('Z');
    expect(heard.some(({ tag, body }) => tag === 'S' && body.toString().startsWith('DateStyle\0German'))).toBe(true);
    await direct.query('ALTER SYSTEM RESET DateStyle');
    await direct.query('SELECT pg_reload_conf()');
    one.write(q("SHOW SOURCES; SET TimeZone = 'Asia/Tokyo'; SHOW SOURCES"));
    const reported = (await one.until('Z')).filter(({ tag }) => tag === 'S').map(({ body }) => body.toString());
    expect(reported).toContain('TimeZone\0Asia/Tokyo\0');
    await direct.query("CREATE ROLE tuned LOGIN; ALTER ROLE tuned SET IntervalStyle = 'iso_8601'");
    const greeted = await greeting(proxy.port, startup(0, { user: 'tuned' }));
    expect(greeted.some(({ tag, body }) => tag === 'S' && body.toString() === 'IntervalStyle\0iso_8601\0')).toBe(true);
    await direct.query('DROP ROLE tuned');
  });

  it('calls functions', async () => {
    const call = (oid: number, value: number): Buffer => {
      const body = Buffer.alloc(20);
      body.writeInt32BE(oid, 0);
      body.set([0, 1, 0, 1, 0, 1, 0, 0, 0, 4], 4);
      body.writeInt32BE(value, 14);
      body.set([0, 1], 18);
      return message(0x46, [body]);
    };
    const heard = await same(Buffer.concat([call(1251, -5), call(31, 1), q('BEGIN'), call(1251, 7), q('SHOW search_path')]), 'Z', 5);
    expect(heard[0]).toBe('V \0\0\0\x04\0\0\0\x05');
    const one = await client();
    one.write(parse('', 'SELECT 1', 'utf8'), call(1251, -9), q('SHOW SOURCES'), sync);
    expect((await one.until('Z', 3)).map(({ tag }) => tag).join('')).toBe('1VZTDDDCZZ');
  });

  it('suspends portals, and gives results in binary', async () => {
    const some = (portal: string, limit: number): Buffer =>
      message(0x45, [Buffer.from(`${portal}\0`), Buffer.from([0, 0, limit >> 8, limit & 255])]);
    const binary = message(0x42, [Buffer.from('p\0\0\0\0\0\0\0\x01\0\x01', 'latin1')]);
    const text = "SELECT n, n::numeric / 3, now() - now(), ARRAY[n], 'ä' FROM generate_series(1, 5) n";
    await same(
      Buffer.concat([
        ...[
          q('BEGIN'),
          parse('', text, 'utf8'),
          binary,
          describeMessage('P', 'p', 'utf8'),
          some('p', 2),
          flush,
          some('p', 2),
          some('p', 2),
        ],
        ...[some('p', 2), close('P', 'p', 'utf8'), some('p', 1), sync, q('ROLLBACK')],
      ]),
      'Z',
      3,
    );
  });

  it('carries large objects', async () => {
    await same(
      Buffer.concat([
        q('BEGIN'),
        q("SELECT lo_from_bytea(4711, '\\x00ff27')"),
        q('SELECT lo_open(4711, 393216), lowrite(0, repeat(chr(120), 100000)::bytea), lo_lseek(0, 0, 0), length(loread(0, 200000))'),
        q('SELECT lo_unlink(4711)'),
        q('ROLLBACK'),
      ]),
      'Z',
      5,
    );
  });

  describe('notifications', () => {
    it.each([
      ['to an idle session', '', ''],
      ['in a transaction, at its end', 'BEGIN', 'COMMIT'],
    ])('come %s', async (_, before, after) => {
      const one = await client();
      one.write(q('LISTEN here'));
      await one.until('Z');
      if (before !== '') {
        one.write(q(before));
        await one.until('Z');
      }
      await direct.query("NOTIFY here, 'first'");
      if (after !== '') one.write(q(after));
      expect((await one.until('A')).at(-1)?.body.toString('utf8', 4)).toBe('here\0first\0');
    });

    it('come during a query and during a statement of ours, and disturb neither', async () => {
      const one = await client();
      one.write(q('LISTEN here'));
      await one.until('Z');
      for (const sql of ['SELECT pg_sleep(0.3)', "CREATE SECRET s AS 'SELECT pg_sleep(0.3)'"]) {
        one.write(q(sql), parse('', 'SHOW SOURCES', 'utf8'), bind('', '', [], 'utf8'), execute('', 'utf8'), sync);
        await pause(50);
        await direct.query("NOTIFY here, 'x'");
        const heard = (await one.until('Z', 2)).map(({ tag }) => tag);
        expect(heard.filter((tag) => tag === 'A')).toHaveLength(1);
        expect(heard.filter((tag) => !'AN'.includes(tag)).join('')).toBe(sql.startsWith('SEL') ? 'TDCZ12DDDCZ' : 'CZ12DDDCZ');
      }
    });

    it('never get lost or mixed up under load', async () => {
      const one = await client();
      one.write(q('LISTEN here'));
      await one.until('Z');
      let heard = 0;
      const notify = (async () => {
        for (let i = 0; i < 100; i++) await direct.query(`NOTIFY here, '${i}'`);
      })();
      for (let i = 0; i < 60; i++) {
        one.write(q(i % 2 === 0 ? 'SHOW SOURCES' : 'SELECT 1'));
        const tags = (await one.until('Z')).map(({ tag }) => tag);
        heard += tags.filter((tag) => tag === 'A').length;
        expect(tags.filter((tag) => tag !== 'A').join('')).toBe(i % 2 === 0 ? 'TDDDCZ' : 'TDCZ');
      }
      await notify;
      if (heard < 100) heard += (await one.until('A', 100 - heard)).filter(({ tag }) => tag === 'A').length;
      expect(heard).toBe(100);
    });
  });

  it('cuts off a client that sends its startup packet a byte a second', async () => {
    const slow = await startProxy(postgres.address, undefined, { authenticationTimeout: 700 });
    const began = Date.now();
    const packet = startup(0);
    const socket = connect(slow.port, '127.0.0.1');
    socket.on('error', () => undefined);
    const ended = new Promise<void>((resolve) => socket.on('close', () => resolve()));
    let at = 0;
    const timer = setInterval(() => socket.write(packet.subarray(at, ++at)), 100);
    await ended;
    clearInterval(timer);
    expect(Date.now() - began).toBeGreaterThan(500);
    expect(Date.now() - began).toBeLessThan(3000);
    await slow.stop(0);
  });
});
