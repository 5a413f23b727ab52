/** SUBSCRIBE as COPY data, as a cursor, through the extended protocol, to a slow client, and durable. */
import { readFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { bind, describe as describePortal, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { Request } from '../../../src/wire/tags.ts';
import { eventually, type Stage, simpleSource, startStage, type TestClient } from '../statements/stage.ts';
import { shown as messagesShown, RawClient, startupPacket } from '../wire/raw-client.ts';
import { cancel, Reader, shown } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await client.query('CREATE TABLE t FROM SOURCE s (REFERENCE public.t)');
}, 180_000);
afterAll(() => stage?.stop());

beforeEach(async () => {
  await origin.query("TRUNCATE t; INSERT INTO t VALUES (1, 'one'), (2, 'two')");
  await eventually(client, 'SELECT a, b FROM t ORDER BY a', [
    [1, 'one'],
    [2, 'two'],
  ]);
});

/** What COPY sends, and how it ended. */
async function copiedBytes(sql: string, own: TestClient): Promise<{ bytes: Buffer; tag: string }> {
  const { connection } = own as unknown as { connection: import('node:events').EventEmitter };
  const chunks: Buffer[] = [];
  connection.on('copyData', ({ chunk }: { chunk: Buffer }) => chunks.push(Buffer.from(chunk)));
  try {
    const result = await own.query(sql);
    return { bytes: Buffer.concat(chunks), tag: `${result.command} ${result.rowCount}` };
  } finally {
    await own.end();
  }
}

/** Lines, without their timestamps. */
async function copied(sql: string): Promise<{ lines: string[]; tag: string }> {
  const { bytes, tag } = await copiedBytes(sql, await stage.connect());
  const lines = bytes.toString().replace(/\n$/, '').split('\n');
  return { lines: lines.map((line) => line.replace(/^\d{10,}/, 'T')), tag };
}

const soon = 'UP TO millrace.now() + 1500';

describe('COPY (SUBSCRIBE ..) TO STDOUT', () => {
  it('as text, as Postgres escapes it', async () => {
    await origin.query(`UPDATE t SET b = E'a\\tb\\\\c\\nd' WHERE a = 1; UPDATE t SET b = NULL WHERE a = 2`);
    await eventually(client, 'SELECT a FROM t WHERE b IS NULL', [[2]]);
    const { lines, tag } = await copied(`COPY (SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a ${soon}) TO STDOUT`);
    expect(lines).toEqual(['T\t1\t1\ta\\tb\\\\c\\nd', 'T\t1\t2\t\\N']);
    expect(tag).toBe('COPY 2');
  });

  it('as csv, with a header', async () => {
    await origin.query(`UPDATE t SET b = 'a,"b"' WHERE a = 1; UPDATE t SET b = '' WHERE a = 2`);
    await eventually(client, "SELECT a FROM t WHERE b = ''", [[2]]);
    const { lines } = await copied(`COPY (SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a ${soon}) TO STDOUT WITH (FORMAT csv, HEADER)`);
    expect(lines).toEqual(['mz_timestamp,mz_diff,a,b', 'T,1,1,"a,""b"""', 'T,1,2,""']);
  });
});

describe('COPY (SUBSCRIBE ..) TO STDOUT (FORMAT binary)', () => {
  beforeAll(async () => {
    await origin.query(`
      CREATE TABLE kinds (id int PRIMARY KEY, flag bool, small int2, big int8, o oid, f4 float4, f8 float8, n numeric, u uuid, x bytea, j json,
        jb jsonb, c char(4), v varchar(9), txt text, nam name, d date, tim time, ts timestamp, tz timestamptz);
      INSERT INTO kinds VALUES
        (1, true, -5, 9007199254740993, 4000000000, 1.5, -0.1, 12345.678900, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\\xdeadbeef', '{"a": 1}', '[1, 2]',
         'ab', 'vier', E'tab\\t', 'name', '2024-02-29', '23:59:59.999999', '1999-12-31 23:59:59.000001', '2026-11-22 09:00:00.5+05:30'),
        (2, false, 0, 0, 0, 'NaN', 'Infinity', 'NaN', NULL, '', 'null', '{}', '', '', '', '', '0001-01-01', '00:00', '0044-03-15 12:00:00 BC', '-infinity'),
        (3, NULL, NULL, NULL, NULL, '-Infinity', '-0', '-Infinity', NULL, NULL, NULL, NULL, NULL, NULL, 'äöü', NULL, 'infinity', '24:00', 'infinity', '0100-03-01 00:00:00+00 BC'),
        (4, NULL, NULL, NULL, NULL, 1e-40, 1e300, 0.0001, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '5874897-12-31', NULL, '294276-12-31 23:59:59.999999', '4714-11-24 00:00:00+00 BC')`);
    await client.query('CREATE TABLE kinds FROM SOURCE s (REFERENCE public.kinds)');
  });

  // Before there were railways the offsets of the latter two had seconds.
  it.each(['UTC', 'Asia/Kathmandu', 'America/New_York'])('is what Postgres itself writes, in time zone %s', async (zone) => {
    const inZone = async (session: Promise<TestClient>): Promise<TestClient> => {
      const own = await session;
      await own.query(`SET TimeZone = '${zone}'`);
      return own;
    };
    const { bytes, tag } = await copiedBytes(
      `COPY (SUBSCRIBE kinds WITHIN TIMESTAMP ORDER BY id ${soon}) TO STDOUT (FORMAT binary)`,
      await inZone(stage.connect()),
    );
    expect(tag).toBe('COPY 4');
    // The timestamp is the first value of the first row, the numeric of some milliseconds.
    const digits = Array.from({ length: bytes.readInt16BE(25) }, (_, place) => bytes.readInt16BE(33 + 2 * place));
    const ts = digits.reduce((sum, digit, place) => sum + digit * 10_000 ** (bytes.readInt16BE(27) - place), 0);
    const wanted = await copiedBytes(
      `COPY (SELECT ${ts}::numeric, 1::bigint, k.* FROM kinds k ORDER BY id) TO STDOUT (FORMAT binary)`,
      await inZone(stage.direct(stage.origin)),
    );
    expect(bytes.toString('hex')).toBe(wanted.bytes.toString('hex'));
  });

  it('has no tuple where there are no rows, and NULLs in rows of progress', async () => {
    const none = await copiedBytes(
      'COPY (SUBSCRIBE t AS OF millrace.now() + 800 UP TO millrace.now() + 800) TO STDOUT (FORMAT binary)',
      await stage.connect(),
    );
    expect(none.bytes.toString('latin1')).toBe('PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\xff\xff');
    const own = await stage.connect();
    const progressed = await copiedBytes(`COPY (SUBSCRIBE t WITH (PROGRESS) ${soon}) TO STDOUT (FORMAT binary)`, own);
    // Columns, numeric of the timestamp, true, and three NULLs; the first row.
    const width = progressed.bytes.readInt32BE(21);
    expect(progressed.bytes.subarray(25 + width, 25 + width + 17).toString('hex')).toBe('0000000101ffffffffffffffffffffffff');
    expect(progressed.bytes.subarray(-2).toString('hex')).toBe('ffff');
  });

  it('is refused in another DateStyle where it would say something else', async () => {
    const own = await stage.connect();
    await own.query('SET DateStyle = German');
    expect(await own.failure(`COPY (SUBSCRIBE (SELECT d FROM kinds) ${soon}) TO STDOUT (FORMAT binary)`)).toBe(
      'ERROR 0A000: column "d" has a binary format here with SET DateStyle = ISO only',
    );
    await own.end();
  });

  it('over a column that has no binary format is refused, and leaves no subscription open', async () => {
    await client.query("CREATE MATERIALIZED VIEW aged AS SELECT a, a * interval '1 day' AS age FROM t");
    const own = await stage.connect();
    for (let round = 0; round < 3; round++) {
      expect(await own.failure('COPY (SUBSCRIBE aged) TO STDOUT (FORMAT binary)')).toBe(
        'ERROR 0A000: column "age" has no binary format here; ask for it as text',
      );
    }
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[0]]);
    await own.end();
  });
});

describe('a cursor', () => {
  it('MOVE passes over rows, and says how many', async () => {
    const own = await stage.connect();
    await own.query('BEGIN; DECLARE c CURSOR FOR SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a');
    const moved = async (sql: string): Promise<string> => {
      const { command, rowCount, rows } = await own.query(sql);
      expect(rows).toEqual([]);
      return `${command} ${rowCount}`;
    };
    expect(await moved('MOVE 1 c')).toBe('MOVE 1');
    expect((await own.rows('FETCH c')).map((row) => row.slice(2))).toEqual([[2, 'two']]);
    expect(await moved("MOVE ALL IN c WITH (timeout = '0s')")).toBe('MOVE 0');
    expect(await moved('MOVE 0 c')).toBe('MOVE 0');
    await origin.query("INSERT INTO t VALUES (3, 'x'), (4, 'y'), (5, 'z')");
    expect(await moved('MOVE FORWARD 2 FROM c')).toBe('MOVE 2');
    expect((await own.rows('FETCH ALL c')).map((row) => row.slice(2))).toEqual([[5, 'z']]);
    for (const back of [
      'FETCH BACKWARD 1 c',
      'FETCH PRIOR FROM c',
      'FETCH -1 c',
      'MOVE BACKWARD ALL c',
      'FETCH ABSOLUTE 1 c',
      'MOVE FIRST c',
    ]) {
      expect(await own.failure(`SAVEPOINT s; ${back}`)).toBe(
        'ERROR 55000: cursor can only scan forward\nHINT: Declare it with SCROLL option to enable backward scan.',
      );
      await own.query('ROLLBACK TO s');
    }
    await own.query('ROLLBACK');
    await own.end();
  });

  it('FETCH takes its timeout as an interval, a number of seconds, or NULL', async () => {
    const own = await stage.connect();
    await own.query('BEGIN; DECLARE c CURSOR FOR SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a');
    expect((await own.rows('FETCH 1 c WITH (TIMEOUT NULL)')).length).toBe(1);
    expect((await own.rows("FETCH 5 FROM c WITH (timeout = INTERVAL '100 ms')")).length).toBe(1);
    expect((await own.rows('FETCH ALL IN c WITH (timeout 0.1)')).length).toBe(0);
    expect(await own.failure("FETCH 1 c WITH (timeout = 'soon')")).toContain('invalid input syntax for type interval');
    await own.query('ROLLBACK');
    await own.end();
  });

  it('FETCH waits for one row, gives what is there, or what comes within its timeout', async () => {
    const own = await stage.connect();
    await own.query('BEGIN; DECLARE c CURSOR FOR SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a');
    expect((await own.rows('FETCH 1 c')).map((row) => row.slice(2))).toEqual([[1, 'one']]);
    expect((await own.rows('FETCH ALL c')).map((row) => row.slice(2))).toEqual([[2, 'two']]);
    expect(await own.rows("FETCH ALL FROM c WITH (timeout = '0s')")).toEqual([]);
    const waiting = own.rows('FETCH FORWARD 10 FROM c');
    await sleep(300);
    await origin.query("INSERT INTO t VALUES (3, 'x'), (4, 'y')");
    expect((await waiting).map((row) => row.slice(2))).toEqual([
      [3, 'x'],
      [4, 'y'],
    ]);
    const collecting = own.rows("FETCH ALL c WITH (timeout = '1500ms')");
    await origin.query('DELETE FROM t WHERE a = 3');
    await sleep(300);
    await origin.query('DELETE FROM t WHERE a = 4');
    expect((await collecting).map((row) => row.slice(1, 3))).toEqual([
      ['-1', 3],
      ['-1', 4],
    ]);
    await own.query('CLOSE c');
    expect(await own.failure('FETCH c')).toContain('cursor "c" does not exist');
    await own.query('ROLLBACK');
    await own.end();
  });

  it('cursors of Postgres beside it go on as ever, and both end with the transaction', async () => {
    const own = await stage.connect();
    await own.query(
      'BEGIN; DECLARE ordinary SCROLL CURSOR FOR SELECT generate_series(1, 5); DECLARE c CURSOR FOR SUBSCRIBE t WITH (PROGRESS)',
    );
    expect(await own.rows('FETCH 2 ordinary')).toEqual([[1], [2]]);
    expect(await own.rows('MOVE 1 ordinary; FETCH BACKWARD 2 FROM ordinary')).toEqual([[2], [1]]);
    expect(await own.failure('SAVEPOINT x; DECLARE ordinary CURSOR FOR SUBSCRIBE t')).toBe('ERROR 42P03: cursor "ordinary" already exists');
    await own.query('ROLLBACK TO x');
    expect((await own.rows('FETCH 1 c'))[0]?.[1]).toBe(true);
    await own.query('COMMIT');
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[0]]);
    expect(await own.failure('BEGIN; FETCH c')).toContain('cursor "c" does not exist');
    await own.query('ROLLBACK');
    await own.query('BEGIN; DECLARE c CURSOR FOR SUBSCRIBE t; FETCH 2 c; CLOSE ALL; COMMIT');
    await own.end();
  });

  it('prepared: Parse, Describe, Execute', async () => {
    const own = await stage.connect();
    await own.query('BEGIN');
    await own.query({ name: 'declare', text: 'DECLARE c CURSOR FOR SUBSCRIBE t', values: [] });
    const fetched = await own.query({ name: 'fetch', text: 'FETCH 5 c', values: [], rowMode: 'array' });
    expect(fetched.fields.map(({ name }) => name)).toEqual(['mz_timestamp', 'mz_diff', 'a', 'b']);
    expect(fetched.rows.length).toBe(2);
    await own.query('COMMIT');
    await own.end();
  });
});

describe('the extended protocol', () => {
  const started = (limit: number): Buffer[] => [
    parse('', 'SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a UP TO millrace.now() + 2000', 'utf8'),
    bind('', '', [], 'utf8'),
    describePortal('P', '', 'utf8'),
    executeSome(limit),
  ];

  it('describes the rows and gives as many as Execute asks for', async () => {
    const raw = await RawClient.open(stage.millrace.port);
    raw.write(...started(1), executeSome(1), executeSome(0), sync);
    const heard = messagesShown(await raw.until('Z')).map((line) => line.replace(/^D \d+/, 'D now'));
    expect(heard).toEqual(['1', '2', 'T mz_timestamp|mz_diff|a|b', 'D now|1|1|one', 's', 'D now|1|2|two', 's', 'C SUBSCRIBE 2', 'Z I']);
    raw.write(query('SELECT count(*) FROM pg_cursors', 'utf8'));
    expect(messagesShown(await raw.until('Z'))).toContain('D 0');
    raw.destroy();
  });

  it('a portal left in the middle leaves nothing behind', async () => {
    await origin.query("INSERT INTO t SELECT n, 'x' FROM generate_series(10, 2000) n");
    await eventually(client, 'SELECT count(*)::int FROM t', [[1993]]);
    const raw = await RawClient.open(stage.millrace.port);
    raw.write(...started(1), sync);
    expect(messagesShown(await raw.until('Z')).at(-1)).toBe('Z I');
    raw.write(query('SELECT count(*) FROM pg_cursors', 'utf8'));
    expect(messagesShown(await raw.until('Z'))).toContain('D 0');
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[0]]);
    raw.destroy();
  });

  it('binary, as clients ask for that read nothing else', async () => {
    const raw = await RawClient.open(stage.millrace.port);
    const binary = message(Request.bind, [Buffer.from([0, 0, 0, 0, 0, 0, 0, 1, 0, 1])]);
    raw.write(parse('', 'SUBSCRIBE t UP TO millrace.now() + 2000', 'utf8'), binary, executeSome(0), sync);
    const [row] = (await raw.until('Z')).filter(({ tag }) => tag === 'D');
    const length = row?.body.readInt32BE(2) ?? 0;
    const digits = Array.from({ length: row?.body.readInt16BE(6) ?? 0 }, (_, index) => row?.body.readInt16BE(14 + 2 * index) ?? 0);
    expect(length).toBe(8 + 2 * digits.length);
    const weight = row?.body.readInt16BE(8) ?? 0;
    const ts = digits.reduce((sum, digit, index) => sum + digit * 10_000 ** (weight - index), 0);
    expect(Math.abs(ts - Date.now())).toBeLessThan(60_000);
    raw.destroy();
  });
});

describe('a client that does not read', () => {
  it('costs no memory, and hears everything later', async () => {
    const rows = 400_000;
    await origin.query(`INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(10, ${rows + 9}) n`);
    await eventually(client, 'SELECT count(*)::int FROM t', [[rows + 2]]);
    const residentMb = (): number[] => stage.millrace.workerPids().map((pid) => Number(/VmRSS:\s+(\d+)/.exec(readStatus(pid))?.[1]) / 1024);
    const before = Math.max(...residentMb());
    const socket = createConnection(stage.millrace.port, stage.millrace.host);
    socket.write(startupPacket({ user: 'postgres', database: 'postgres' }));
    await new Promise((resolve) => socket.once('data', resolve));
    await sleep(300);
    socket.pause();
    socket.write(query('COPY (SUBSCRIBE t UP TO millrace.now() + 4000) TO STDOUT', 'utf8'));
    await sleep(5000);
    // 90 MB wait for it, elsewhere.
    expect(Math.max(...residentMb()) - before).toBeLessThan(60);
    let bytes = 0;
    let tail = '';
    socket.resume();
    socket.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      tail = (tail + chunk.toString('latin1')).slice(-200);
    });
    await expect.poll(() => tail, { timeout: 40_000 }).toContain(`COPY ${rows + 2}`);
    expect(bytes).toBeGreaterThan(rows * 200);
    socket.destroy();
  }, 120_000);
});

describe('a cancel', () => {
  it.each(['SUBSCRIBE t', 'COPY (SUBSCRIBE t) TO STDOUT'])('of %s is heard while the client does not read', async (sql) => {
    await origin.query("TRUNCATE t; INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(10, 100009) n");
    await eventually(client, 'SELECT count(*)::int FROM t', [[100_000]]);
    const socket = createConnection(stage.millrace.port, stage.millrace.host);
    socket.write(startupPacket({ user: 'postgres', database: 'postgres' }));
    let welcome = Buffer.alloc(0);
    while (!welcome.includes('Z\0\0\0\x05I'))
      welcome = Buffer.concat([welcome, await new Promise<Buffer>((resolve) => socket.once('data', resolve))]);
    socket.pause();
    const key = welcome.subarray(welcome.indexOf('K\0\0\0'));
    const [processID, secretKey] = [key.readInt32BE(5), key.readInt32BE(9)];
    socket.write(query(sql, 'utf8'));
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[1]]);
    await sleep(1500);
    await cancel({ host: stage.millrace.host, port: stage.millrace.port, processID, secretKey } as unknown as TestClient);
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[0]]);
    let bytes = 0;
    let tail = '';
    socket.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      tail = (tail + chunk.toString('latin1')).slice(-300);
    });
    socket.resume();
    await expect.poll(() => tail, { timeout: 20_000 }).toMatch(/C57014\0Mcanceling statement due to user request\0/);
    await expect.poll(() => tail).toSatisfy((end: string) => end.endsWith('Z\0\0\0\x05I'));
    expect(bytes).toBeLessThan(100_000 * 200);
    socket.destroy();
  });
});

function readStatus(pid: number): string {
  return readFileSync(`/proc/${pid}/status`, 'utf8');
}

/** Execute of the unnamed portal, with a row limit. */
function executeSome(limit: number): Buffer {
  const body = Buffer.alloc(5);
  body.writeInt32BE(limit, 1);
  return message(Request.execute, [body]);
}

describe('a durable subscription', () => {
  it('begins with a snapshot and goes on from what was acknowledged, whatever dies in between', async () => {
    await client.query('CREATE DURABLE SUBSCRIPTION d FOR t');
    expect(await client.failure('CREATE DURABLE SUBSCRIPTION d FOR t')).toBe('ERROR 42710 at <d>: durable subscription "d" already exists');
    const first = await stage.connect();
    const reader = new Reader(first, 'SUBSCRIBE USING DURABLE SUBSCRIPTION d WITH (PROGRESS)');
    const rows = await reader.take(4);
    expect(rows.map((row) => row['mz_progressed'])).toEqual(['t', 'f', 'f', 't']);
    const reached = rows[3]?.['mz_timestamp'] ?? '';
    await client.query(`ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO ${reached}`);
    await origin.query("INSERT INTO t VALUES (3, 'x')");
    const seen: string[] = [];
    while (!seen.includes('f 1 3 x')) seen.push(...(await reader.take(1)).map(shown));
    await first.end();
    for (const pid of stage.millrace.enginePids()) process.kill(pid, 'SIGKILL');
    await origin.query("BEGIN; INSERT INTO t VALUES (4, 'y'); DELETE FROM t WHERE a = 1; COMMIT");
    await eventually(client, 'SELECT count(*)::int FROM t WHERE a = 4', [[1]]);
    await sleep(2500);
    const second = await stage.connect();
    const again = new Reader(second, 'SUBSCRIBE USING DURABLE SUBSCRIPTION d');
    expect((await again.take(3)).map(shown).sort()).toEqual(['-1 1 one', '1 3 x', '1 4 y']);
    // A new reader takes its place.
    const third = new Reader(await stage.connect(), 'SUBSCRIBE USING DURABLE SUBSCRIPTION d ENVELOPE UPSERT (KEY (a))');
    expect((await third.take(3)).map(shown).sort()).toEqual(['delete 1 -', 'upsert 3 x', 'upsert 4 y']);
    expect(await again.done).toMatchObject({ code: '55006' });
    await client.query('DROP DURABLE SUBSCRIPTION d');
    expect(await third.done).toMatchObject({ code: '55006' });
    await second.end();
  });

  it('an acknowledgement rolls back with its transaction', async () => {
    await client.query('CREATE DURABLE SUBSCRIPTION d FOR t');
    await eventually(client, "SELECT status FROM millrace.subscriptions WHERE name = 'd'", [['waiting']]);
    const [[before] = []] = await client.rows("SELECT ts FROM millrace.subscriptions WHERE name = 'd'");
    await sleep(50);
    await origin.query("INSERT INTO t VALUES (3, 'x')");
    await eventually(client, 'SELECT count(*)::int FROM t', [[3]]);
    await client.query('BEGIN; ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO millrace.now(); ROLLBACK');
    expect(await client.rows("SELECT ts FROM millrace.subscriptions WHERE name = 'd'")).toEqual([[before]]);
    await client.query('ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO millrace.now()');
    expect(await client.rows("SELECT ts FROM millrace.subscriptions WHERE name = 'd'")).not.toEqual([[before]]);
    expect(
      (await client.failure('ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO millrace.now() + 100000')).replace(/\d{10,}/g, 'N'),
    ).toMatchInlineSnapshot(`
      "ERROR 22023 at <millrace>: cannot acknowledge durable subscription "d" up to N
      DETAIL: The present is N.
      HINT: Acknowledge what was read: a timestamp of a progress row, or mz_timestamp + 1 once all rows with that mz_timestamp are there."
    `);
    await client.query('DROP DURABLE SUBSCRIPTION IF EXISTS d, e');
    expect(client.takeNotices()).toContain('durable subscription "e" does not exist, skipping');
  });

  it('says that its relation was dropped, and can be dropped itself', async () => {
    await client.query('CREATE MATERIALIZED VIEW short_lived AS SELECT a FROM t; CREATE DURABLE SUBSCRIPTION orphan FOR short_lived');
    const reader = new Reader(await stage.connect(), 'SUBSCRIBE USING DURABLE SUBSCRIPTION orphan');
    await reader.take(2);
    await client.query('DROP MATERIALIZED VIEW short_lived');
    expect(await reader.done).toMatchObject({
      code: '42P01',
      message: 'the relation of durable subscription "orphan" was dropped',
      detail: 'Nothing more comes of it, and what had not been read is gone with public.short_lived.',
    });
    expect(await client.rows("SELECT relation, status FROM millrace.subscriptions WHERE name = 'orphan'")).toEqual([
      [null, 'relation dropped'],
    ]);
    expect(await client.failure('SUBSCRIBE USING DURABLE SUBSCRIPTION orphan')).toMatchInlineSnapshot(`
      "ERROR 42P01: the relation of durable subscription "orphan" was dropped
      DETAIL: Nothing more comes of it, and what had not been read is gone with it.
      HINT: DROP DURABLE SUBSCRIPTION orphan; and, to read the relation that took its place, from all of its rows on: CREATE DURABLE SUBSCRIPTION orphan FOR ..;"
    `);
    await client.query('DROP DURABLE SUBSCRIPTION orphan');
    expect(await client.rows("SELECT * FROM millrace.subscriptions WHERE name = 'orphan'")).toEqual([]);
  });

  it('belongs to its owner', async () => {
    await client.query('CREATE DURABLE SUBSCRIPTION d FOR t; CREATE ROLE stranger LOGIN');
    const own = await stage.connect('stranger');
    expect(await own.failure('SUBSCRIBE USING DURABLE SUBSCRIPTION d')).toMatchInlineSnapshot(`
      "ERROR 42501: must be owner of durable subscription d
      DETAIL: It belongs to role "postgres"; the current role is "stranger".
      HINT: Act as its owner (SET ROLE postgres;) or ask for membership: GRANT postgres TO ...;"
    `);
    expect(await own.failure('ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO 5')).toContain('must be owner of durable subscription d');
    expect(await own.failure('DROP DURABLE SUBSCRIPTION d')).toContain('must be owner of durable subscription d');
    await client.query('GRANT CREATE ON SCHEMA public TO stranger');
    expect(await own.failure('CREATE DURABLE SUBSCRIPTION e FOR t')).toMatchInlineSnapshot(`
      "ERROR 42501 at <t>: permission denied for table t
      DETAIL: Subscribing to it needs SELECT; the current role is "stranger".
      HINT: Its owner can grant it: GRANT SELECT ON public.t TO stranger;"
    `);
    await client.query('DROP DURABLE SUBSCRIPTION d');
  });
});
