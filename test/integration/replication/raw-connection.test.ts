import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { RowBuffer } from '../../../src/replication/copy-rows.ts';
import { ConnectionLostError, PostgresError } from '../../../src/replication/postgres-error.ts';
import { connectRaw, type RawConnection } from '../../../src/replication/raw-connection.ts';
import { pinnedSettings } from '../../../src/replication/settings.ts';
import { TextArray } from '../../../src/replication/text-array.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let server: TestPostgres;
let connection: RawConnection;

beforeAll(async () => {
  server = await startPostgres();
});
afterAll(() => server?.stop());

beforeEach(async () => {
  connection = await connectRaw(server.address, { settings: pinnedSettings });
  return () => connection.close();
});

const code = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'no error',
    (error: unknown) => (error instanceof PostgresError || error instanceof ConnectionLostError ? error.code : error),
  );

/** Payloads of a COPY TO as one text. */
async function copyText(sql: string): Promise<string> {
  const parts: string[] = [];
  await connection.copyOut(sql, (buffer, start, end) => {
    for (let at = start; at < end; ) {
      const size = 1 + buffer.readInt32BE(at + 1);
      parts.push(buffer.toString('utf8', at + 5, at + size));
      at += size;
    }
  });
  return parts.join('');
}

describe('query', () => {
  it('answers each statement of a string', async () => {
    const results = await connection.query("SELECT 1 AS one, NULL AS nothing; SELECT 'é' WHERE false; BEGIN; ; COMMIT");
    expect(results.map((result) => result.tag)).toEqual(['SELECT 1', 'SELECT 0', 'BEGIN', 'COMMIT']);
    expect(results[0]?.rows).toEqual([['1', null]]);
    expect(results[0]?.fields.map((field) => [field.name, field.typeOid])).toEqual([
      ['one', 23],
      ['nothing', 25],
    ]);
    expect(await connection.query('')).toEqual([{ rows: [], fields: [], tag: '' }]);
  });

  it('sets the pinned settings', async () => {
    const [result] = await connection.query(
      "SELECT '2026-02-03 04:05:06+00'::timestamptz, interval '1 day 2 hours', 0.1::float8 + 0.2, '\\x00ff'::bytea",
    );
    expect(result?.rows[0]).toEqual(['2026-02-03 04:05:06+00', '1 day 02:00:00', '0.30000000000000004', '\\x00ff']);
  });

  it('gives the error every field the server sent', async () => {
    const error = await connection
      .query('CREATE TEMP TABLE k (a int CONSTRAINT positive CHECK (a > 0)); INSERT INTO k VALUES (-1)')
      .catch((e: unknown) => e);
    expect(error).toBeInstanceOf(PostgresError);
    expect((error as PostgresError).fields).toMatchObject({
      severity: 'ERROR',
      code: '23514',
      table: 'k',
      constraint: 'positive',
      detail: expect.stringContaining('Failing row'),
    });
  });
});

describe('pipelining', () => {
  it('answers calls in order, an error only where it belongs', async () => {
    const calls = [
      connection.query('SELECT 1'),
      connection.query('SELECT 1/0'),
      connection.execute('two', 'SELECT $1::int + 1', ['1']),
      connection.execute('bad', 'SELECT nothing'),
      connection.execute('two', 'SELECT $1::int + 1', ['2']),
      connection.query('SELECT 4'),
    ];
    const settled = await Promise.allSettled<unknown>(calls);
    expect(settled.map((one) => one.status)).toEqual(['fulfilled', 'rejected', 'fulfilled', 'rejected', 'fulfilled', 'fulfilled']);
    expect(await code(calls[1] ?? Promise.resolve())).toBe('22012');
    expect(await code(calls[3] ?? Promise.resolve())).toBe('42703');
    expect(await calls[4]).toMatchObject({ rows: [['3']], tag: 'SELECT 1' });
  });

  it('leaves the server its semantics after a failure in a transaction', async () => {
    const calls = [
      connection.query('BEGIN'),
      connection.query('SELECT 1/0'),
      connection.execute('later', 'SELECT 1'),
      connection.query('COMMIT'),
      connection.execute('later', 'SELECT 1'),
    ];
    expect(await Promise.all(calls.map((call) => code(call)))).toEqual(['no error', '22012', '25P02', 'no error', 'no error']);
    expect((await connection.query('SELECT 1'))[0]?.tag).toBe('SELECT 1');
    expect(connection.transactionStatus).toBe('I');
  });

  it('makes executeAll one transaction and names the statement that failed', async () => {
    await connection.query('CREATE TEMP TABLE one (a int PRIMARY KEY)');
    const insert = { name: 'ins', sql: 'INSERT INTO one VALUES ($1::int)' };
    const failed = connection.executeAll([
      { ...insert, params: ['1'] },
      { ...insert, params: ['1'] },
      { name: 'never', sql: 'SELECT 1' },
    ]);
    const error = await failed.catch((e: unknown) => e);
    expect(error).toMatchObject({ code: '23505', statementIndex: 1 });
    expect((await connection.query('SELECT count(*) FROM one'))[0]?.rows).toEqual([['0']]);
    // The statement that was skipped does not count as prepared.
    const results = await connection.executeAll([
      { ...insert, params: ['7'] },
      { name: 'never', sql: 'SELECT 1' },
    ]);
    expect(results.map((result) => result.tag)).toEqual(['INSERT 0 1', 'SELECT 1']);
  });

  it('sends a corked batch as one', async () => {
    connection.cork();
    const calls = Array.from({ length: 100 }, (_, i) => connection.execute('echo', 'SELECT $1::text', [String(i)]));
    connection.uncork();
    expect((await Promise.all(calls)).map((result) => result.rows[0]?.[0])).toEqual(Array.from({ length: 100 }, (_, i) => String(i)));
  });

  it('takes 20 000 calls at once', async () => {
    await connection.execute('echo', 'SELECT $1::int', ['0']);
    const calls = Array.from({ length: 20_000 }, (_, i) => connection.execute('echo', 'SELECT $1::int', [String(i)]));
    const results = await Promise.all(calls);
    expect(results[19_999]?.rows).toEqual([['19999']]);
  });
});

describe('execute', () => {
  it('takes text, bytes, binary and NULL', async () => {
    const array = new TextArray();
    array.append(Buffer.from('xa"b\\,{}y'), 1, 8);
    array.appendNull();
    array.appendText('é');
    const empty = new TextArray();
    const result = await connection.execute('params', 'SELECT $1::text, $2::text, $3::text[], $4::text, $5::text[]', [
      'ü',
      Buffer.from('bytes'),
      array.toParam(),
      null,
      empty.toParam(),
    ]);
    expect(result.rows).toEqual([['ü', 'bytes', '{"a\\"b\\\\,{}",NULL,é}', null, '{}']]);
  });

  it('prepares anew when the text under a name changes, and after forget', async () => {
    expect((await connection.execute('s', 'SELECT 1')).rows).toEqual([['1']]);
    expect((await connection.execute('s', 'SELECT 2')).rows).toEqual([['2']]);
    await connection.query('CREATE TEMP TABLE shape (a int); INSERT INTO shape VALUES (1)');
    const select = (): Promise<unknown> => connection.execute('shape', 'SELECT * FROM shape');
    await select();
    await connection.query('ALTER TABLE shape ADD b int');
    expect(await code(select())).toBe('0A000');
    connection.forget('shape');
    expect(await select()).toMatchObject({ rows: [['1', null]] });
  });

  it('prepares anew what was there although it was to be prepared again in a failed transaction', async () => {
    connection.cork();
    const calls = [
      connection.query('BEGIN'),
      connection.execute('twice', 'SELECT 1'),
      connection.query('SELECT 1/0'),
      connection.execute('twice', 'SELECT 1'),
      connection.query('ROLLBACK'),
    ];
    connection.uncork();
    expect(await Promise.all(calls.map((call) => code(call)))).toEqual(['no error', 'no error', '22012', '25P02', 'no error']);
    expect((await connection.execute('twice', 'SELECT 1')).rows).toEqual([['1']]);
  });

  it('carries a large parameter', async () => {
    const large = 'é'.repeat(3_000_000);
    const result = await connection.execute('large', 'SELECT octet_length($1::text)', [large]);
    expect(result.rows).toEqual([['6000000']]);
  });
});

describe('copy', () => {
  const nasty = [
    '',
    '\\N',
    '\\.',
    '\\',
    'tab\tnewline\nreturn\rbackspace\bfeed\fvertical\vbackslash\\end',
    '\u0001\u0007\u001b\u007f',
    'a"b\'c,d{e}',
    'é漢😀',
    ' leading and trailing ',
    'x'.repeat(47),
    'x'.repeat(48),
    `${'y'.repeat(100)}\n${'z'.repeat(100)}\t`,
    '\n'.repeat(1000),
    'w'.repeat(200_000),
    '\\'.repeat(100_000),
  ];

  it('encodes values exactly as COPY TO does', async () => {
    const rows = new RowBuffer();
    for (const value of nasty) {
      rows.text(value);
      rows.null();
      rows.ascii('7\t');
      rows.endLine();
    }
    const mine = rows
      .take()
      .map((chunk) => {
        expect(chunk[0]).toBe(0x64);
        expect(chunk.readInt32BE(1)).toBe(chunk.length - 1);
        return chunk.toString('utf8', 5);
      })
      .join('');
    await connection.query('CREATE TEMP TABLE nasty (i serial, t text)');
    for (const value of nasty) await connection.execute('add', 'INSERT INTO nasty (t) VALUES ($1)', [value]);
    expect(mine).toBe(await copyText('COPY (SELECT t, NULL, 7 FROM nasty ORDER BY i) TO STDOUT'));
  });

  it('keeps every type through COPY out and in', async () => {
    await connection.query(`
      CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"');
      CREATE TYPE pair AS (a int, b text);
      CREATE DOMAIN small AS numeric(5, 2);
      CREATE TEMP TABLE kinds (a int2, b int4, c int8, d numeric, e float4, f float8, g bool, h text, i varchar(9), j char(5), k bytea, l date, m time,
        n timetz, o timestamp, p timestamptz, q interval, r json, s jsonb, t uuid, u inet, v cidr, w macaddr, x point, y box, z bit(3), aa varbit,
        ab int4range, ac tsrange, ad int[], ae text[], af mood, ag pair, ah small, ai xml, aj money, ak tsvector, al oid, am regclass, an int4multirange,
        ao mood[], ap jsonb[], aq "char", ar name);
      INSERT INTO kinds VALUES (-32768, 2147483647, -9223372036854775808, 123456789012345678901234567890.000100, 1e-45, 'NaN', true,
        E'a\\tb\\\\\\n\\x01', 'é', 'ab', '\\x00ff5c0a', '0044-01-01 BC', '23:59:59.999999', '12:00:00+05:30', 'infinity', '2026-11-21 10:20:30.123456+00',
        '-1 year 2 mons -3 days 04:05:06.7', '{"a":  1}', '{"b": [null, "\\n"]}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '10.0.0.1/8', '10.0.0.0/8',
        '08:00:2b:01:02:03', '(1.1,-2)', '(3,4),(1,2)', B'101', B'10', '[1,5)', '["2026-01-01 00:00:00",)', '{{1,NULL},{3,4}}', E'{"a\\\\"b",NULL,"NULL",""}',
        'it''s "ok"', '(1,"x,y")', 12.30, '<a>b</a>', '$1,234.50', 'a:1 fat:2,3', 4294967295, 'pg_class', '{[1,3),[5,9)}',
        '{sad,"it''s \\"ok\\""}', '{"{\\"k\\": 1}"}', 'x', 'name');
      INSERT INTO kinds DEFAULT VALUES;
      CREATE TEMP TABLE kinds2 (LIKE kinds)`);
    const chunks: Buffer[] = [];
    let count = 0;
    await connection.copyOut('COPY kinds TO STDOUT', (buffer, start, end, rows) => {
      chunks.push(Buffer.from(buffer.subarray(start, end)));
      count += rows;
    });
    expect(count).toBe(2);
    const target = connection.copyIn('COPY kinds2 FROM STDIN');
    for (const chunk of chunks) target.writeFrames(chunk);
    expect(await target.finish()).toBe('COPY 2');
    const [difference] = await connection.query(
      'SELECT count(*) FROM kinds old, kinds2 new WHERE old.a IS NOT DISTINCT FROM new.a AND old *= new',
    );
    expect(difference?.rows).toEqual([['2']]);
    await connection.query('DROP TYPE mood, pair CASCADE; DROP DOMAIN small CASCADE');
  });

  it('is pipelined: data follows at once, and other calls follow the data', async () => {
    const create = connection.query('CREATE TEMP TABLE piped (a int)');
    const copy = connection.copyIn('COPY piped FROM STDIN');
    copy.write(Buffer.from('1\n2\n'));
    copy.write(Buffer.from('3\n'));
    const tag = copy.finish();
    const sum = connection.query('SELECT sum(a) FROM piped');
    await create;
    expect(await tag).toBe('COPY 3');
    expect((await sum)[0]?.rows).toEqual([['6']]);
  });

  it('survives a COPY that is refused at once, with the data under way', async () => {
    const copy = connection.copyIn('COPY no_such_table FROM STDIN');
    for (let i = 0; i < 200; i++) copy.write(Buffer.alloc(64 * 1024, 0x61));
    const tag = copy.finish();
    const after = connection.query('SELECT 1');
    expect(await code(tag)).toBe('42P01');
    expect(copy.error).toBeInstanceOf(PostgresError);
    expect((await after)[0]?.rows).toEqual([['1']]);
  });

  it('survives a COPY that fails on the way', async () => {
    await connection.query('CREATE TEMP TABLE broken (a int)');
    const copy = connection.copyIn('COPY broken FROM STDIN');
    copy.write(Buffer.from('1\nx\n'));
    for (let i = 0; i < 100; i++) {
      if (!copy.write(Buffer.from('2\n'.repeat(30_000)))) await copy.drain();
    }
    expect(await code(copy.finish())).toBe('22P02');
    expect((await connection.query('SELECT count(*) FROM broken'))[0]?.rows).toEqual([['0']]);
  });

  it('fails a COPY when asked, and refuses other calls during one', async () => {
    await connection.query('CREATE TEMP TABLE given_up (a int)');
    const copy = connection.copyIn('COPY given_up FROM STDIN');
    copy.write(Buffer.from('1\n'));
    await expect(connection.query('SELECT 1')).rejects.toThrow('a COPY is under way');
    await copy.fail('no reason');
    expect(copy.error).toMatchObject({ code: '57014', message: expect.stringContaining('no reason') });
    expect((await connection.query('SELECT count(*) FROM given_up'))[0]?.rows).toEqual([['0']]);
  });

  it('does not hang when COPY FROM STDIN comes by plain query', async () => {
    await connection.query('CREATE TEMP TABLE plain (a int)');
    expect(await code(connection.query('COPY plain FROM STDIN'))).toBe('57014');
    expect((await connection.query('SELECT 2'))[0]?.rows).toEqual([['2']]);
  });

  it('holds the server back while the reader pauses', async () => {
    let rows = 0;
    let pauses = 0;
    const done = connection.copyOut(
      "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 50000)) TO STDOUT",
      (_buffer, _start, _end, count) => {
        rows += count;
        if (pauses < 20) {
          pauses++;
          const before = rows;
          connection.pause();
          setTimeout(() => {
            expect(rows).toBe(before);
            connection.resume();
          }, 5);
        }
      },
    );
    expect(await done).toBe('COPY 50000');
    expect(rows).toBe(50_000);
    expect(pauses).toBe(20);
  });

  it('ends the connection when the reader throws, with its error as the cause', async () => {
    const other = await connectRaw(server.address);
    const problem = new Error('disk full');
    const failed = await other
      .copyOut('COPY (SELECT 1) TO STDOUT', () => {
        throw problem;
      })
      .catch((error: unknown) => error);
    expect(failed).toBeInstanceOf(ConnectionLostError);
    expect((failed as Error).cause).toBe(problem);
  });
});

describe('the end of a connection', () => {
  it('rejects the calls that wait, with what the server said', async () => {
    const other = await connectRaw(server.address);
    const closed = new Promise((resolve) => other.onClose(resolve));
    const waiting = [other.query('SELECT pg_sleep(60)'), other.query('SELECT 1')];
    const codes = waiting.map((call) => code(call));
    await new Promise((resolve) => setTimeout(resolve, 100));
    await connection.query(`SELECT pg_terminate_backend(${other.backendPid})`);
    expect(await Promise.all(codes)).toEqual(['57P01', '57P01']);
    expect(await closed).toMatchObject({ code: '57P01' });
    expect(await code(other.query('SELECT 1'))).toBe('08006');
  });

  it('answers what was sent before close', async () => {
    const other = await connectRaw(server.address);
    const last = other.query('SELECT 1');
    let reason: unknown = 'not called';
    other.onClose((error) => {
      reason = error;
    });
    await other.close();
    expect((await last)[0]?.rows).toEqual([['1']]);
    expect(reason).toBeUndefined();
  });

  it('hears notices and notifications', async () => {
    const heard: string[] = [];
    connection.onNotice((fields) => heard.push(fields.message));
    connection.onNotification((channel, payload) => heard.push(`${channel}=${payload}`));
    await connection.query("LISTEN c; DO $$ BEGIN RAISE NOTICE 'hello'; END $$; NOTIFY c, 'p'");
    await connection.query('SELECT 1');
    expect(heard.sort()).toEqual(['c=p', 'hello']);
  });

  it('closes the socket when a setting is refused', async () => {
    expect(await code(connectRaw(server.address, { settings: { DateStyle: 'nonsense' } }))).toBe('22023');
  });
});
