/** Wherever the streams are cut, on the way there and on the way back, the client reads the same bytes. */
import { connect, createServer, type Server } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bind, close, describe as describeMessage, execute, flush, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { Request } from '../../../src/wire/tags.ts';
import { startProxy, type TestProxy } from '../../integration/wire/proxy.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { converse } from './conversation.ts';
import { runner } from './pipeline-steps.ts';

let postgres: TestPostgres;
let relay: Server;
/** Where the bytes of the upstream are cut, counted from the beginning of its connection; one for each of the next connections. */
const cuts: number[] = [];
let heard = 0;
/** At every third place, beginning anywhere; with MILLRACE_FRAMING=every at all of them. */
const stride = process.env['MILLRACE_FRAMING'] === 'every' ? 1 : 3;
let proxy: TestProxy;

const pause = (): Promise<void> => new Promise((next) => setTimeout(next, 1));

beforeAll(async () => {
  postgres = await startPostgres();
  relay = createServer({ noDelay: true, allowHalfOpen: true }, (near) => {
    const far = connect({ port: postgres.port, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
    const cutAt = cuts.shift() ?? Number.POSITIVE_INFINITY;
    let at = 0;
    let written = Promise.resolve();
    near.on('data', (chunk) => far.write(chunk)).on('end', () => far.end());
    near.on('error', () => far.destroy());
    far.on('error', () => near.destroy()).on('end', () => void written.then(() => near.end()));
    far.on('data', (chunk: Buffer) => {
      const cut = cutAt - at;
      at += chunk.length;
      heard = at;
      if (cut <= 0 || cut >= chunk.length) {
        near.write(chunk);
        return;
      }
      far.pause();
      near.write(chunk.subarray(0, cut));
      written = pause().then(() => {
        near.write(chunk.subarray(cut));
        far.resume();
      });
    });
  });
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  const address = relay.address();
  proxy = await startProxy({ ...postgres.address, port: typeof address === 'object' ? (address?.port ?? 0) : 0 }, runner);
});
afterAll(async () => {
  await proxy?.stop(0);
  relay?.close();
  await postgres?.stop();
});

const q = (sql: string): Buffer => query(sql, 'utf8');
const whole = (name: string, sql: string): Buffer[] => [
  ...[parse(name, sql, 'utf8'), bind('', name, [], 'utf8'), describeMessage('P', '', 'utf8'), execute('', 'utf8')],
];
const copy = [message(Request.copyData, [Buffer.from('1\n2\n')]), message(Request.copyDone, [])];

const ordinary: Readonly<Record<string, readonly Buffer[]>> = {
  'simple queries, notices, errors and reports': [q("SET application_name = 'x'; SELECT 1/0"), q('ROLLBACK'), q("SET TimeZone = 'UTC'")],
  'a pipeline with an error': [...whole('a', "SELECT 'ä'"), ...whole('', 'SELECT x'), close('S', 'a', 'utf8'), sync, flush, sync],
  'COPY both ways': [q('CREATE TEMP TABLE t (a int)'), q('COPY t FROM STDIN'), ...copy, q('COPY t TO STDOUT')],
};
const extended: Readonly<Record<string, readonly Buffer[]>> = {
  'a statement of ours between others': [q('SELECT 1'), q('SHOW TABLES'), q("SELECT 2; CREATE SECRET s AS 'PERFORM 1'; SELECT 3")],
  'a statement of ours in a pipeline': [...whole('', 'SELECT 1'), ...whole('n', 'SHOW TABLES'), close('S', 'n', 'utf8'), sync],
  'a statement of ours that fails': [...whole('', "CREATE SECRET s AS 'PERFORM 1/0'"), ...whole('', 'SELECT 1'), sync, q('DROP TABLE nil')],
  'a candidate and a COPY in one text': [q('CREATE TEMP TABLE live_t (a int)'), q('COPY live_t FROM STDIN; DROP TABLE live_t'), ...copy],
};

describe.each(Object.entries({ ...ordinary, ...extended }))('%s', (name, messages) => {
  const bytes = Buffer.concat(messages);
  let expected: string;
  let length = 0;
  beforeAll(async () => {
    const whole = await converse(proxy.port, [bytes]);
    length = heard;
    expected = whole.bytes.toString('latin1');
    expect(expected.split('Z\0\0\0\x05').length).toBeGreaterThan(1);
    if (name in ordinary) expect(expected).toBe((await converse(postgres.port, [bytes])).bytes.toString('latin1'));
  });

  /** Several at a time, as each waits for a pause. */
  async function everywhere(points: readonly number[], check: (at: number) => Promise<string>): Promise<void> {
    for (let first = 0; first < points.length; first += 8) {
      const some = points.slice(first, first + 8);
      for (const got of await Promise.all(some.map(check))) if (got !== expected) expect({ some, got }).toEqual({ some, got: expected });
    }
  }

  it('is the same wherever the client’s bytes are cut', async () => {
    const points = Array.from({ length: bytes.length - 1 }, (_, index) => index + 1);
    await everywhere(points, async (at) => {
      const said = await converse(proxy.port, [bytes.subarray(0, at), bytes.subarray(at)], { between: pause });
      return said.bytes.toString('latin1');
    });
  });

  it('is the same wherever the server’s bytes are cut', async () => {
    const points: number[] = [];
    for (let at = 1 + Math.floor(Math.random() * stride); at < length; at += stride) points.push(at);
    await everywhere(points, async (at) => {
      cuts.push(at);
      return (await converse(proxy.port, [bytes])).bytes.toString('latin1');
    });
  });
});
