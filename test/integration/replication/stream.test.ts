import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type ChangeHandler, PgoutputDecoder, type TupleView, valueKind } from '../../../src/replication/pgoutput.ts';
import { createSlot, dropSlot, freeSlot, lookUpSlot } from '../../../src/replication/slots.ts';
import { type ReplicationStream, type StreamOptions, startStream } from '../../../src/replication/stream.ts';
import { systemTimers } from '../../../src/replication/stream-timers.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let server: TestPostgres;
let client: pg.Client;
const slot = 'slot';

beforeAll(async () => {
  server = await startPostgres({ settings: { wal_level: 'logical' } });
  client = new pg.Client(server.url);
  await client.connect();
  await client.query('CREATE PUBLICATION p FOR ALL TABLES');
});
afterAll(async () => {
  await client?.end();
  await server?.stop();
});

let open: ReplicationStream[] = [];
beforeEach(async () => {
  await client.query('DROP SCHEMA public CASCADE; CREATE SCHEMA public');
  await dropSlot(client, slot, { terminate: true });
  await createSlot(server.address, slot);
  return async () => {
    await Promise.all(open.map((stream) => stream.close().catch(() => {})));
    open = [];
  };
});

const cell = (row: TupleView, i: number): string | null =>
  row.kinds[i] === valueKind.null
    ? null
    : row.kinds[i] === valueKind.unchangedToast
      ? '<unchanged>'
      : row.buffer.toString('utf8', row.starts[i], row.ends[i]);
const cells = (row: TupleView | undefined): unknown =>
  row === undefined ? undefined : Array.from({ length: row.count }, (_, i) => cell(row, i));

interface Recorded {
  readonly stream: ReplicationStream;
  readonly events: unknown[][];
  /** End LSNs of commits. */
  readonly commits: bigint[];
  readonly keepalives: bigint[];
}

async function record(options: Partial<StreamOptions> = {}): Promise<Recorded> {
  const events: unknown[][] = [];
  const commits: bigint[] = [];
  const keepalives: bigint[] = [];
  const handler: ChangeHandler = {
    begin: () => events.push(['begin']),
    commit: (_lsn, end) => {
      commits.push(end);
      events.push(['commit']);
    },
    origin: () => {},
    relation: (relation) => events.push(['relation', relation.name, relation.replicaIdentity, relation.columns.map((one) => one.name)]),
    type: (_oid, schema, name) => events.push(['type', schema, name]),
    insert: (_oid, row) => events.push(['insert', cells(row)]),
    update: (_oid, kind, old, row) => events.push(['update', kind, cells(old), cells(row)]),
    delete: (_oid, kind, old) => events.push(['delete', kind, cells(old)]),
    truncate: (oids, cascade, restart) => events.push(['truncate', oids.length, cascade, restart]),
    message: (transactional, _lsn, prefix, buffer, start, end) =>
      events.push(['message', transactional, prefix, buffer.toString('utf8', start, end)]),
  };
  const decoder = new PgoutputDecoder(handler);
  const stream = await startStream({
    address: server.address,
    slot,
    publication: 'p',
    startLsn: 0n,
    onMessage: (walStart, buffer, start, end) => decoder.decode(walStart, buffer, start, end),
    onKeepalive: (walEnd) => keepalives.push(walEnd),
    ...options,
  });
  open.push(stream);
  return { stream, events, commits, keepalives };
}

async function until(condition: () => boolean | Promise<boolean>, what: string, ms = 20_000): Promise<void> {
  for (const end = Date.now() + ms; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const commits = (recorded: Recorded, count: number): Promise<void> =>
  until(() => recorded.commits.length >= count, `${count} commits, got ${recorded.commits.length}`);
/** Events without those that only frame the transactions. */
const changes = (recorded: Recorded): unknown[][] =>
  recorded.events.filter(([kind]) => !['begin', 'commit', 'relation', 'type'].includes(String(kind)));

describe('changes', () => {
  it('arrive as they were made', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY, a text, b int)');
    const recorded = await record();
    await client.query("INSERT INTO t VALUES (1, 'é', NULL), (2, '', 5)");
    await client.query('UPDATE t SET b = 6 WHERE id = 2');
    await client.query('UPDATE t SET id = 3 WHERE id = 2');
    await client.query('DELETE FROM t WHERE id = 1');
    await client.query('TRUNCATE t RESTART IDENTITY CASCADE');
    await commits(recorded, 5);
    expect(changes(recorded)).toEqual([
      ['insert', ['1', 'é', null]],
      ['insert', ['2', '', '5']],
      ['update', '', undefined, ['2', '', '6']],
      ['update', 'K', ['2', null, null], ['3', '', '6']],
      ['delete', 'K', ['1', null, null]],
      ['truncate', 1, true, true],
    ]);
    expect(recorded.events.find(([kind]) => kind === 'relation')).toEqual(['relation', 't', 'd', ['id', 'a', 'b']]);
  });

  it('carry old rows as the replica identity says', async () => {
    await client.query(`CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL;
      CREATE TABLE i (a int, b int NOT NULL, c int); CREATE UNIQUE INDEX i_b ON i (b); ALTER TABLE i REPLICA IDENTITY USING INDEX i_b;
      CREATE TABLE n (a int); ALTER TABLE n REPLICA IDENTITY NOTHING`);
    const recorded = await record();
    await client.query("INSERT INTO f VALUES (1, 'x'); UPDATE f SET b = NULL; DELETE FROM f");
    await client.query('INSERT INTO i VALUES (1, 2, 3); UPDATE i SET b = 4; DELETE FROM i');
    await client.query('INSERT INTO n VALUES (1)');
    await expect(client.query('DELETE FROM n')).rejects.toMatchObject({ code: '55000' });
    await commits(recorded, 3);
    expect(changes(recorded)).toEqual([
      ['insert', ['1', 'x']],
      ['update', 'O', ['1', 'x'], ['1', null]],
      ['delete', 'O', ['1', null]],
      ['insert', ['1', '2', '3']],
      ['update', 'K', [null, '2', null], ['1', '4', '3']],
      ['delete', 'K', [null, '4', null]],
      ['insert', ['1']],
    ]);
    expect(recorded.events.filter(([kind]) => kind === 'relation').map(([, name, identity]) => [name, identity])).toEqual([
      ['f', 'f'],
      ['i', 'i'],
      ['n', 'n'],
    ]);
  });

  it('mark TOAST values that did not change', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY, big text, n int); ALTER TABLE t ALTER big SET STORAGE EXTERNAL');
    const recorded = await record();
    await client.query("INSERT INTO t VALUES (1, repeat('x', 100000), 1)");
    await client.query('UPDATE t SET n = 2');
    await client.query("UPDATE t SET big = 'small'");
    await commits(recorded, 3);
    expect(changes(recorded)).toEqual([
      ['insert', ['1', 'x'.repeat(100_000), '1']],
      ['update', '', undefined, ['1', '<unchanged>', '2']],
      ['update', '', undefined, ['1', 'small', '2']],
    ]);
  });

  it('use the pinned spelling of values, whatever the origin prefers', async () => {
    await client.query(`CREATE TABLE t (id int PRIMARY KEY, at timestamptz, d interval, f float8, b bytea, r regclass);
      ALTER DATABASE postgres SET DateStyle = 'German'; ALTER DATABASE postgres SET TimeZone = 'Asia/Tokyo';
      ALTER DATABASE postgres SET bytea_output = 'escape'; ALTER DATABASE postgres SET IntervalStyle = 'iso_8601'; ALTER DATABASE postgres SET extra_float_digits = 0`);
    const recorded = await record();
    await client.query("INSERT INTO t VALUES (1, '2026-11-21 10:00:00+00', '1 day 02:00', 0.1::float8 + 0.2, '\\x00ff', 't')");
    await commits(recorded, 1);
    expect(changes(recorded)).toEqual([
      ['insert', ['1', '2026-11-21 10:00:00+00', '1 day 02:00:00', '0.30000000000000004', '\\x00ff', 'public.t']],
    ]);
    await client.query(
      'ALTER DATABASE postgres RESET DateStyle; ALTER DATABASE postgres RESET TimeZone; ALTER DATABASE postgres RESET bytea_output; ALTER DATABASE postgres RESET IntervalStyle; ALTER DATABASE postgres RESET extra_float_digits',
    );
  });

  it('include logical messages, unless not wanted', async () => {
    const recorded = await record();
    await client.query("SELECT pg_logical_emit_message(true, 'millrace', 'hé'); SELECT pg_logical_emit_message(false, 'other', '')");
    await client.query('CREATE TABLE t (id int)');
    await client.query('INSERT INTO t VALUES (1)');
    await until(() => recorded.events.some(([kind]) => kind === 'insert'), 'insert');
    expect(recorded.events.filter(([kind]) => kind === 'message')).toEqual(
      expect.arrayContaining([
        ['message', true, 'millrace', 'hé'],
        ['message', false, 'other', ''],
      ]),
    );
    await recorded.stream.close();
    const without = await record({ messages: false });
    await until(() => without.events.some(([kind]) => kind === 'insert'), 'insert');
    expect(without.events.some(([kind]) => kind === 'message')).toBe(false);
  });
});

describe('positions', () => {
  it('are acknowledged only as told, and the slot follows', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY)');
    const recorded = await record();
    for (let i = 1; i <= 3; i++) await client.query('INSERT INTO t VALUES ($1)', [i]);
    await commits(recorded, 3);
    const [first, second] = recorded.commits;
    const confirmed = async (): Promise<bigint> => (await lookUpSlot(client, slot))?.confirmedFlush ?? 0n;
    // Status updates go out every second; none may say more than was acknowledged.
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    expect(await confirmed()).toBeLessThan(first ?? 0n);
    recorded.stream.acknowledge(second ?? 0n);
    await until(async () => (await confirmed()) === second, 'confirmed_flush');
    recorded.stream.acknowledge(first ?? 0n);
    expect(recorded.stream.acknowledged).toBe(second);

    // A new stream begins after what was acknowledged: the third transaction comes again, the second does not.
    await recorded.stream.close();
    const again = await record();
    await commits(again, 1);
    expect(changes(again)).toEqual([['insert', ['3']]]);
    // So it does from a start position that is further back, and from one further on it begins there.
    await again.stream.close();
    const further = await record({ startLsn: recorded.commits[2] ?? 0n });
    await client.query('INSERT INTO t VALUES (4)');
    await commits(further, 1);
    expect(changes(further)).toEqual([['insert', ['4']]]);
  });

  it('acknowledged one by one were told one by one: half a millisecond, and as many wake-ups of the server, for what had become durable together', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY)');
    const due: (() => void)[] = [];
    let isHeld = false;
    const recorded = await record({
      timers: { ...systemTimers, afterIo: (work) => (isHeld ? due.push(work) : systemTimers.afterIo(work)) },
    });
    for (let i = 1; i <= 50; i++) await client.query('INSERT INTO t VALUES ($1)', [i]);
    await commits(recorded, 50);
    isHeld = true;
    for (const lsn of recorded.commits) recorded.stream.acknowledge(lsn);
    isHeld = false;
    expect(due).toHaveLength(1);
    due[0]?.();
    await until(async () => (await lookUpSlot(client, slot))?.confirmedFlush === recorded.commits.at(-1), 'confirmed_flush');
  });

  it('move on an idle stream, by keepalives', async () => {
    const { stream, keepalives } = await record();
    // WAL that is not published.
    await client.query(
      'CREATE TEMP TABLE x AS SELECT 1; CREATE UNLOGGED TABLE u (a int); CREATE TABLE q AS SELECT generate_series(1, 1000)',
    );
    const end = BigInt(
      `0x${(await client.query("SELECT upper(to_hex((pg_current_wal_insert_lsn() - '0/0')::bigint)) AS lsn")).rows[0].lsn}`,
    );
    await until(() => {
      stream.requestKeepalive();
      return (keepalives.at(-1) ?? 0n) >= end;
    }, 'keepalive');
    stream.acknowledge(keepalives.at(-1) ?? 0n);
    await until(async () => ((await lookUpSlot(client, slot))?.confirmedFlush ?? 0n) >= end, 'confirmed_flush');
  });
});

describe('flow', () => {
  it('stops while paused, and outlives wal_sender_timeout meanwhile', async () => {
    await client.query("ALTER SYSTEM SET wal_sender_timeout = '2s'");
    await client.query('SELECT pg_reload_conf()');
    await client.query('CREATE TABLE t (id int PRIMARY KEY, filler text)');
    const recorded = await record();
    await client.query("INSERT INTO t VALUES (0, '')");
    await commits(recorded, 1);
    recorded.stream.pause();
    await client.query("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i");
    await new Promise((resolve) => setTimeout(resolve, 5_000));
    expect(changes(recorded)).toHaveLength(1);
    recorded.stream.resume();
    await commits(recorded, 2);
    expect(changes(recorded)).toHaveLength(20_001);
    // And an idle one.
    await new Promise((resolve) => setTimeout(resolve, 5_000));
    await client.query("INSERT INTO t VALUES (-1, '')");
    await commits(recorded, 3);
    await client.query('ALTER SYSTEM RESET wal_sender_timeout');
    await client.query('SELECT pg_reload_conf()');
  });

  it('can be paused from within a message', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY)');
    let seen = 0;
    let paused = false;
    const holder: { stream?: ReplicationStream } = {};
    const { stream } = await record({
      onMessage: () => {
        expect(paused).toBe(false);
        seen++;
        paused = true;
        holder.stream?.pause();
        setImmediate(() => {
          paused = false;
          holder.stream?.resume();
        });
      },
    });
    holder.stream = stream;
    await client.query('INSERT INTO t SELECT generate_series(1, 2000)');
    await until(() => seen === 2003, 'begin, relation, 2000 rows, commit');
  });

  it('takes a large transaction in bounded memory', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY, filler text)');
    let rows = 0;
    let peak = 0;
    let done = false;
    global.gc?.();
    const before = process.memoryUsage().rss;
    const { stream } = await record({
      onMessage: (_lsn, buffer, start) => {
        if (buffer[start] === 73 && ++rows % 5000 === 0) {
          peak = Math.max(peak, process.memoryUsage().rss - before);
          // As an engine that is slower than the origin.
          if (rows % 20_000 === 0) {
            stream.pause();
            setTimeout(() => stream.resume(), 20);
          }
        }
        if (buffer[start] === 67) done = true;
      },
    });
    await client.query("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 200000) i");
    await until(() => done, 'commit', 60_000);
    expect(rows).toBe(200_000);
    // 200 MB went through.
    expect(peak / 1024 / 1024).toBeLessThan(100);
  });
});

describe('the end of a stream', () => {
  const reason = (promise: Promise<unknown>): Promise<unknown> =>
    promise.then(
      () => undefined,
      (error: unknown) => error,
    );

  it('is told at the start when the slot is missing or in use, or the publication', async () => {
    expect(await reason(record({ slot: 'missing' }))).toMatchObject({ code: '42704' });
    const { stream } = await record();
    expect(await reason(record())).toMatchObject({ code: '55006', message: expect.stringContaining('is active for PID') });
    await freeSlot(client, slot);
    expect(await reason(stream.closed)).toMatchObject({ code: '57P01' });
    await client.query('CREATE TABLE t (id int)');
    const missing = await record({ publication: 'it\'s "missing"' });
    await client.query('INSERT INTO t VALUES (1)');
    expect(await reason(missing.stream.closed)).toMatchObject({ code: '42704', message: expect.stringContaining('it\'s "missing"') });
  });

  it('is silent after close', async () => {
    const { stream } = await record();
    await stream.close();
    await expect(stream.closed).resolves.toBeUndefined();
    await until(async () => (await lookUpSlot(client, slot))?.activePid === undefined, 'slot released');
  });

  it('is what the handler threw', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY)');
    const problem = new Error('disk full');
    const { stream } = await record({
      onMessage: () => {
        throw problem;
      },
    });
    await client.query('INSERT INTO t VALUES (1)');
    expect(await reason(stream.closed)).toBe(problem);
  });

  it('is noticed when the origin falls silent', async () => {
    let now = 0;
    let tick = (): void => {};
    const timers = {
      ...systemTimers,
      now: () => now,
      every: (_ms: number, work: () => void) => {
        tick = work;
        return () => {};
      },
    };
    const { stream } = await record({ timers });
    // The server answers what it is asked, so the stream lives on ...
    for (let i = 0; i < 10; i++) {
      now += 40_000;
      tick();
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    // ... paused it is not blamed for our silence ...
    stream.pause();
    now += 500_000;
    tick();
    stream.resume();
    tick();
    // ... and when nothing comes for two timeouts (60 s each), it ends.
    now += 121_000;
    tick();
    expect(await reason(stream.closed)).toMatchObject({ message: 'nothing heard from the origin for 121 s' });
  });

  it('comes with the end of the server, and a new stream resumes', async () => {
    await client.query('CREATE TABLE t (id int PRIMARY KEY)');
    const recorded = await record();
    await client.query('INSERT INTO t VALUES (1)');
    await commits(recorded, 1);
    recorded.stream.acknowledge(recorded.commits[0] ?? 0n);
    await client.query('INSERT INTO t VALUES (2)');
    await commits(recorded, 2);
    await client.end();
    await server.kill9();
    expect(await reason(recorded.stream.closed)).toBeInstanceOf(Error);
    await server.restart();
    client = new pg.Client(server.url);
    await client.connect();
    const again = await record({ startLsn: recorded.commits[0] ?? 0n });
    await commits(again, 1);
    expect(changes(again)).toEqual([['insert', ['2']]]);
  });
});

describe('slots', () => {
  it('are looked up, and dropped also while in use', async () => {
    const recorded = await record();
    expect(await lookUpSlot(client, slot)).toMatchObject({ name: slot, database: 'postgres', plugin: 'pgoutput', walStatus: 'reserved' });
    await expect(dropSlot(client, slot)).rejects.toMatchObject({ code: '55006' });
    expect(await dropSlot(client, slot, { terminate: true })).toBe(true);
    expect(await dropSlot(client, slot)).toBe(false);
    expect(await lookUpSlot(client, slot)).toBeUndefined();
    await expect(recorded.stream.closed).rejects.toThrow();
  });

  it('are not created behind an idle transaction for ever, and nothing is left behind', async () => {
    const idle = new pg.Client(server.url);
    await idle.connect();
    await idle.query('BEGIN; SELECT pg_current_xact_id()');
    await expect(createSlot(server.address, 'late', { lockTimeoutMs: 300 })).rejects.toMatchObject({ code: '55P03' });
    expect(await lookUpSlot(client, 'late')).toBeUndefined();
    await idle.end();
    await expect(createSlot(server.address, slot)).rejects.toMatchObject({ code: '42710' });
    const { consistentPoint } = await createSlot(server.address, 'late');
    expect((await lookUpSlot(client, 'late'))?.confirmedFlush).toBe(consistentPoint);
    await dropSlot(client, 'late');
  });
});
