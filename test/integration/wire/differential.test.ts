/** The same bytes to the server and to the proxy bring the same bytes back. */
import { connect } from 'node:net';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bind, close, describe as describeMessage, execute, flush, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { startProxy, type TestProxy } from './proxy.ts';
import { startupPacket } from './raw-client.ts';

let postgres: TestPostgres;
let proxy: TestProxy;

beforeAll(async () => {
  postgres = await startPostgres();
  proxy = await startProxy(postgres.address);
});
afterAll(async () => {
  await proxy?.stop(0);
  await postgres?.stop();
});

/** Everything the server says up to the end of the connection, without the key data, which differs by session. */
function conversation(port: number, chunks: readonly Buffer[], minor: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const startup = startupPacket({ user: 'postgres', database: 'postgres', application_name: 'd' });
    startup.writeInt32BE(196608 + minor, 4);
    const socket = connect({ port, host: '127.0.0.1', noDelay: true });
    const heard: Buffer[] = [];
    let started = false;
    socket.on('data', (bytes) => {
      heard.push(bytes);
      if (started || Buffer.concat(heard).lastIndexOf(Buffer.from([0x5a, 0, 0, 0, 5, 0x49])) === -1) return;
      started = true;
      void (async () => {
        for (const chunk of chunks) {
          socket.write(chunk);
          await new Promise((next) => setImmediate(next));
        }
        socket.write(message(0x58, []));
        socket.end();
      })();
    });
    socket.on('error', reject);
    // A conversation that stops shows as one that differs.
    socket.setTimeout(20_000, () => {
      heard.push(message(0x3f, [Buffer.from(`stalled on ${port}`)]));
      socket.destroy();
    });
    socket.on('close', () => {
      const bytes = Buffer.concat(heard);
      let shown = '';
      for (let at = 0; at < bytes.length; ) {
        const next = at + 1 + bytes.readInt32BE(at + 1);
        // Of the key only the length is the same.
        shown += bytes[at] === 0x4b ? `K${next - at}` : bytes.toString('latin1', at, next);
        at = next;
      }
      resolve(shown);
    });
    socket.write(startup);
  });
}

const statement = fc.constantFrom(
  'SELECT 1',
  'SELECT 1/0',
  'SELECT x',
  'BEGIN',
  'COMMIT',
  'ROLLBACK',
  'SHOW server_encoding',
  'SHOW search_path; SELECT 2',
  'DROP TABLE IF EXISTS none_such',
  'DROP TABLE none_such',
  'CREATE TEMP TABLE d (a int)',
  'DROP TABLE d',
  'DROP TABLE d; SELECT 1',
  'REFRESH MATERIALIZED VIEW none_such',
  "SET client_encoding = 'LATIN1'",
  'SAVEPOINT a',
  'ROLLBACK TO a',
  'SELECT generate_series(1, 2000)',
  "DO $$BEGIN RAISE NOTICE 'n'; END$$",
  'LISTEN x',
  'NOTIFY y',
  'COPY (SELECT 1) TO STDOUT',
  'DEALLOCATE ALL',
);
const name = fc.constantFrom('', 'a', 'b');
const step = fc.oneof(
  // In a batch without Sync a look at a candidate can change the status letter of what follows: no driver does that, so nor do we.
  fc.oneof(statement, fc.constantFrom('', ';;')).map((sql) => [...(/^(DROP|REFRESH)/.test(sql) ? [sync] : []), query(sql, 'utf8')]),
  fc.tuple(name, statement).map(([n, sql]) => [parse(n, sql, 'utf8')]),
  fc
    .tuple(name, statement)
    .map(([n, sql]) => [parse(n, sql, 'utf8'), bind('', n, [], 'utf8'), describeMessage('P', '', 'utf8'), execute('', 'utf8'), sync]),
  fc.tuple(name, name).map(([p, s]) => [bind(p, s, [], 'utf8'), execute(p, 'utf8')]),
  name.map((n) => [describeMessage('S', n, 'utf8')]),
  name.map((n) => [close('S', n, 'utf8')]),
  fc.constantFrom([sync], [flush], [sync], [message(0x46, [Buffer.from([0, 0, 0, 31, 0, 0, 0, 0, 0, 0])])]),
);

describe('the proxy', () => {
  it('is transparent', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { maxLength: 12 }),
        fc.integer({ min: 1, max: 200 }),
        fc.constantFrom(0, 2, 9),
        async (steps, size, minor) => {
          const bytes = Buffer.concat([...steps.flat(), sync]);
          const chunks: Buffer[] = [];
          for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.subarray(at, at + size));
          const [direct, proxied] = await Promise.all([
            conversation(postgres.port, chunks, minor),
            conversation(proxy.port, chunks, minor),
          ]);
          expect(proxied).toBe(direct);
        },
      ),
      { numRuns: 120 },
    );
  });
});
