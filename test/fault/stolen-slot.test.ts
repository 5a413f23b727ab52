/**
 * Somebody else reads from the slot of a source, as pg_recvlogical would: they are named and left alone, their end is waited for, and what they took
 * is known to be missing.
 */
import pg from 'pg';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { connectRaw } from '../../src/replication/raw-connection.ts';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

let origin: TestPostgres;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeEach(async () => {
  [origin, upstream] = await Promise.all([startPostgres({ settings: { wal_level: 'logical' } }), startPostgres({})]);
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query('CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1); CREATE PUBLICATION p FOR ALL TABLES');
  extended = await extendedClient(upstream.address);
  await extended.run(`CREATE CONNECTION c TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`);
  engine = startEngine(upstream.address);
  await extended.run(
    "CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p'); CREATE SCHEMA live; CREATE TABLE live.t FROM SOURCE s (REFERENCE t)",
  );
}, 120_000);
afterEach(async () => {
  await engine?.stop();
  await extended?.end();
  await admin?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

const status = (): Promise<string> =>
  texts(extended.client, 'SELECT status, error FROM millrace.sources').then(([row]) => row?.join('|') ?? '');
const ids = (): Promise<string> =>
  texts(extended.client, 'SELECT id FROM live.t ORDER BY id').then((rows) => rows.map(([id]) => id).join(' '));
const slotName = (): Promise<string> =>
  texts(admin, "SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ '^millrace'").then(([row]) => row?.[0] ?? '');

interface Thief {
  readonly pid: number;
  /** Tells the origin that it has everything that there is, as pg_recvlogical does every few seconds. */
  confirm(): Promise<void>;
  leave(): Promise<void>;
}

/** Streams from the slot as soon as nobody else does. */
async function thief(slot: string): Promise<Thief> {
  for (;;) {
    const connection = await connectRaw(origin.address, { replication: true, applicationName: 'pg_recvlogical' });
    try {
      const options = "proto_version '1', publication_names 'p'";
      const copy = await connection.copyBoth(`START_REPLICATION SLOT "${slot}" LOGICAL 0/0 (${options})`, () => undefined);
      copy.ended.catch(() => undefined);
      return {
        pid: connection.backendPid,
        confirm: async () => {
          const [row] = await texts(admin, "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::text");
          const update = Buffer.alloc(34);
          update[0] = 0x72;
          for (const at of [1, 9, 17]) update.writeBigUInt64BE(BigInt(row?.[0] ?? '0'), at);
          copy.write(update);
        },
        leave: async () => {
          connection.destroy();
          await expect.poll(() => texts(admin, 'SELECT FROM pg_replication_slots WHERE active')).toEqual([]);
        },
      };
    } catch {
      connection.destroy();
    }
  }
}

test('one who only looks is named, is not ended, and the stream goes on when they leave', async () => {
  const slot = await slotName();
  engine.kill();
  const other = await thief(slot);
  await admin.query('INSERT INTO t VALUES (2)');
  await expect
    .poll(status, { timeout: 30_000 })
    .toBe(
      `stalled|replication slot "${slot}" is in use by process ${other.pid} of the origin (pg_recvlogical of role postgres, from 127.0.0.1), which is no Millrace; it is tried again until that has ended`,
    );
  expect(await texts(extended.client, 'SELECT details FROM millrace.source')).toEqual([['{"code": "55006"}']]);
  expect(await texts(admin, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = '${slot}'`)).toEqual([[String(other.pid)]]);
  expect(await ids()).toBe('1');
  await other.leave();
  await expect.poll(ids, { timeout: 30_000 }).toBe('1 2');
  await expect.poll(status, { timeout: 30_000 }).toMatch(/^running/);
}, 90_000);

test('one who has taken changes is found out, and a resynchronisation brings them back', async () => {
  const slot = await slotName();
  engine.kill();
  const other = await thief(slot);
  await admin.query('INSERT INTO t VALUES (2)');
  await expect.poll(status, { timeout: 30_000 }).toMatch(/^stalled\|replication slot "\w+" is in use by process/);
  await admin.query('INSERT INTO t VALUES (3)');
  const [end] = await texts(admin, 'SELECT pg_current_wal_lsn()');
  const confirmed = async (): Promise<string | null | undefined> => {
    await other.confirm();
    return (
      await texts(admin, `SELECT confirmed_flush_lsn >= '${end?.[0]}' FROM pg_replication_slots WHERE slot_name = '${slot}'`)
    )[0]?.[0];
  };
  await expect.poll(confirmed, { timeout: 30_000 }).toBe('t');
  await other.leave();
  await expect
    .poll(status, { timeout: 30_000 })
    .toMatch(/^stalled\|replication slot "\w+" is at \w+\/\w+, only \w+\/\w+ has been reached here: someone else read from it, or /);
  expect(await ids()).toBe('1');
  await extended.run('ALTER SOURCE s RESYNC');
  await expect.poll(ids, { timeout: 30_000 }).toBe('1 2 3');
  await expect.poll(status, { timeout: 30_000 }).toMatch(/^running/);
}, 90_000);
