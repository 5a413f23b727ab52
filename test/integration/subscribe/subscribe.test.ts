/** SUBSCRIBE over simple queries: columns, envelopes, order, bounds, rights, ends. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { eventually, type Stage, simpleSource, startStage, type TestClient } from '../statements/stage.ts';
import { cancel, Reader, shown } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await client.query('CREATE TABLE t FROM SOURCE s (REFERENCE public.t)');
  await client.query('CREATE MATERIALIZED VIEW lengths AS SELECT length(b) AS n, count(*) AS c FROM t GROUP BY length(b)');
}, 180_000);
afterAll(() => stage?.stop());

beforeEach(async () => {
  await origin.query("TRUNCATE t; INSERT INTO t VALUES (1, 'one'), (2, 'two')");
  await eventually(client, 'SELECT a, b FROM t ORDER BY a', [
    [1, 'one'],
    [2, 'two'],
  ]);
});

/** A SUBSCRIBE on a connection of its own, which the test ends. */
async function reading(sql: string, use: (reader: Reader, own: TestClient) => Promise<void>): Promise<void> {
  const own = await stage.connect();
  try {
    await use(new Reader(own, sql), own);
  } finally {
    await own.end();
  }
}

describe('SUBSCRIBE', () => {
  it('gives what is there, then what changes, transaction by transaction', async () => {
    await reading('SUBSCRIBE t', async (reader) => {
      const snapshot = await reader.take(2);
      expect(snapshot.map((row) => Object.keys(row))[0]).toEqual(['mz_timestamp', 'mz_diff', 'a', 'b']);
      expect(snapshot.map(shown).sort()).toEqual(['1 1 one', '1 2 two']);
      expect(new Set(snapshot.map((row) => row['mz_timestamp'])).size).toBe(1);
      await origin.query("BEGIN; UPDATE t SET b = 'zwei' WHERE a = 2; INSERT INTO t VALUES (3, NULL); DELETE FROM t WHERE a = 1; COMMIT");
      const changes = await reader.take(4);
      expect(changes.map(shown).sort()).toEqual(['-1 1 one', '-1 2 two', '1 2 zwei', '1 3 -']);
      expect(new Set(changes.map((row) => row['mz_timestamp'])).size).toBe(1);
      expect(Number(changes[0]?.['mz_timestamp'])).toBeGreaterThan(Number(snapshot[0]?.['mz_timestamp']));
    });
  });

  it('of a view, rows alike are one with their number', async () => {
    await reading('SUBSCRIBE TO lengths WITH (SNAPSHOT = false, PROGRESS)', async (reader) => {
      // The first says where it begins.
      let [row] = await reader.take(1);
      await origin.query("INSERT INTO t VALUES (3, 'x'), (4, 'y')");
      while (row?.['mz_progressed'] === 't') [row] = await reader.take(1);
      expect(row === undefined ? undefined : shown(row)).toBe('f 1 1 2');
    });
  });

  it('ENVELOPE UPSERT: one row a key and timestamp', async () => {
    await reading('SUBSCRIBE t ENVELOPE UPSERT (KEY (a))', async (reader) => {
      const snapshot = await reader.take(2);
      expect(Object.keys(snapshot[0] ?? {})).toEqual(['mz_timestamp', 'mz_state', 'a', 'b']);
      expect(snapshot.map(shown).sort()).toEqual(['upsert 1 one', 'upsert 2 two']);
      await origin.query("BEGIN; UPDATE t SET b = 'zwei' WHERE a = 2; INSERT INTO t VALUES (3, NULL); DELETE FROM t WHERE a = 1; COMMIT");
      expect((await reader.take(3)).map(shown).sort()).toEqual(['delete 1 -', 'upsert 2 zwei', 'upsert 3 -']);
    });
  });

  it('ENVELOPE DEBEZIUM: with what was before, and a key that several rows have', async () => {
    await reading('SUBSCRIBE t ENVELOPE DEBEZIUM (KEY (b)) WITH (SNAPSHOT = false)', async (reader) => {
      await sleep(500);
      await origin.query(
        "BEGIN; UPDATE t SET a = 9 WHERE b = 'two'; INSERT INTO t VALUES (3, 'x'), (4, 'x'), (5, 'y'); DELETE FROM t WHERE a = 1; COMMIT",
      );
      const rows = await reader.take(4);
      expect(Object.keys(rows[0] ?? {})).toEqual(['mz_timestamp', 'mz_state', 'b', 'before_a', 'after_a']);
      expect(rows.map(shown).sort()).toEqual(['delete one 1 -', 'insert y - 5', 'key_violation x - -', 'upsert two 2 9']);
    });
  });

  it('WITHIN TIMESTAMP ORDER BY sorts each timestamp', async () => {
    await reading('SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a DESC, mz_diff', async (reader) => {
      expect((await reader.take(2)).map(shown)).toEqual(['1 2 two', '1 1 one']);
      await origin.query("BEGIN; UPDATE t SET b = b || '!'; INSERT INTO t VALUES (3, 'x'); COMMIT");
      expect((await reader.take(5)).map(shown)).toEqual(['1 3 x', '-1 2 two', '1 2 two!', '-1 1 one', '1 1 one!']);
    });
  });

  it('PROGRESS begins with the timestamp of the snapshot and goes on while nothing changes', async () => {
    await reading('SUBSCRIBE t WITH (PROGRESS)', async (reader) => {
      const rows = await reader.take(6);
      expect(rows.map((row) => row['mz_progressed'])).toEqual(['t', 'f', 'f', 't', 't', 't']);
      expect(rows.map(shown)[0]).toBe('t - - -');
      const times = rows.map((row) => Number(row['mz_timestamp']));
      expect(times[1]).toBe(times[0]);
      expect(times[3]).toBe((times[0] ?? 0) + 1);
      expect([...times].sort((x, y) => x - y)).toEqual(times);
    });
  });

  it('UP TO ends it, exclusively, and says how many rows there were', async () => {
    const own = await stage.connect();
    const now = Number((await own.rows('SELECT millrace.now()'))[0]?.[0]);
    const reader = new Reader(own, `SUBSCRIBE t WITH (PROGRESS) UP TO ${now + 2000}`);
    const result = await reader.done;
    expect(result).not.toBeInstanceOf(Error);
    expect(reader.rows.at(-1)).toMatchObject({ mz_progressed: 't', mz_timestamp: String(now + 2000) });
    expect('command' in result && result.command).toBe('SUBSCRIBE');
    expect('rowCount' in result && result.rowCount).toBe(reader.rows.length);
    expect(await own.rows('SELECT 1')).toEqual([[1]]);
    await own.end();
  });

  it('AS OF = UP TO gives nothing; AS OF in the future waits; one beyond UP TO is refused', async () => {
    const soon = 'millrace.now() + 1500';
    expect(await client.rows(`SUBSCRIBE t AS OF ${soon} UP TO ${soon}`)).toEqual([]);
    const time = "to_char(now() + interval '1500 ms', 'YYYY-MM-DD HH24:MI:SS.MSTZH:TZM')";
    expect(await client.rows(`SUBSCRIBE t AS OF ${time} UP TO now() + interval '1500 ms'`)).toEqual([]);
    const rows = await client.rows(`SUBSCRIBE t AS OF ${soon} UP TO ${soon} + 1`);
    expect(rows.map(([, diff, a]) => [Number(diff), a]).sort()).toEqual([
      [1, 1],
      [1, 2],
    ]);
    expect(await client.failure('SUBSCRIBE t AS OF 5 UP TO 4')).toMatchInlineSnapshot(
      `"ERROR 22023: subscription lower bound (\`AS OF\`) is greater than its upper bound (\`UP TO\`): 5 > 4"`,
    );
  });

  it('AS OF in the past: from what another reader keeps, and no further', async () => {
    await client.query('CREATE DURABLE SUBSCRIPTION keeper FOR t');
    await eventually(client, "SELECT status FROM millrace.subscriptions WHERE name = 'keeper'", [['waiting']]);
    const before = (await client.rows('SELECT millrace.now()'))[0]?.[0] as string;
    await origin.query("UPDATE t SET b = 'uno' WHERE a = 1");
    await eventually(client, 'SELECT b FROM t WHERE a = 1', [['uno']]);
    await sleep(2500);
    await reading(`SUBSCRIBE t AS OF ${before}`, async (reader) => {
      const rows = (await reader.take(4)).map((row) => [row['mz_timestamp'] === before, shown(row)]);
      expect(rows.slice(0, 2).sort()).toEqual([
        [true, '1 1 one'],
        [true, '1 2 two'],
      ]);
      expect(rows.slice(2).sort()).toEqual([
        [false, '-1 1 one'],
        [false, '1 1 uno'],
      ]);
    });
    await reading(`SUBSCRIBE t AS OF ${before} WITH (SNAPSHOT = false)`, async (reader) => {
      expect((await reader.take(2)).map(shown).sort()).toEqual(['-1 1 one', '1 1 uno']);
    });
    await reading('SUBSCRIBE t AS OF AT LEAST 7', async (reader) => {
      expect((await reader.take(2)).length).toBe(2);
    });
    expect((await client.failure('SUBSCRIBE t AS OF 7')).replace(/\d{10,}/, 'N')).toMatchInlineSnapshot(`
      "ERROR 22023: could not find a valid timestamp for the query
      DETAIL: Constraints: AS OF 7; changes of public.t are kept after N.
      HINT: To go on from a position later, read through a durable subscription: CREATE DURABLE SUBSCRIPTION my_reader FOR public.t;"
    `);
    await client.query('DROP DURABLE SUBSCRIPTION keeper');
  });

  it('a query over live relations: what differs from run to run', async () => {
    await reading(
      'SUBSCRIBE (SELECT b || $$!$$ AS b, 1::numeric(5,2) AS "one more" FROM t WHERE a < 3) ENVELOPE UPSERT (KEY (b))',
      async (reader) => {
        const rows = await reader.take(2);
        expect(Object.keys(rows[0] ?? {})).toEqual(['mz_timestamp', 'mz_state', 'b', 'one more']);
        expect(rows.map(shown).sort()).toEqual(['upsert one! 1.00', 'upsert two! 1.00']);
        await origin.query("UPDATE t SET b = 'zwei' WHERE a = 2");
        expect((await reader.take(2)).map(shown).sort()).toEqual(['delete two! -', 'upsert zwei! 1.00']);
      },
    );
  });

  it('is cancelled like any statement, and leaves nothing open', async () => {
    const own = await stage.connect();
    const reader = new Reader(own, 'SUBSCRIBE t');
    await reader.take(2);
    await cancel(own);
    expect(await reader.done).toMatchObject({ code: '57014' });
    expect(await own.rows('SELECT count(*)::int FROM pg_cursors')).toEqual([[0]]);
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[0]]);
    await own.end();
  });

  it('ends with its client', async () => {
    const own = await stage.connect();
    const reader = new Reader(own, 'SUBSCRIBE t');
    await reader.take(2);
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[1]]);
    (own as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
    await eventually(client, "SELECT count(*)::int FROM millrace.subscriptions WHERE status = 'read'", [[0]]);
  });

  it('asks for the right to SELECT, also later', async () => {
    await client.query('CREATE ROLE reader LOGIN');
    const own = await stage.connect('reader');
    expect(await own.failure('SUBSCRIBE t')).toMatchInlineSnapshot(`"ERROR 42501: permission denied for view t"`);
    await client.query('GRANT SELECT ON t TO reader');
    const reader = new Reader(own, 'SUBSCRIBE t');
    await reader.take(2);
    await client.query('REVOKE SELECT ON t FROM reader');
    expect(await reader.done).toMatchObject({ code: '42501' });
  });

  it('ends with an error when the relation is dropped', async () => {
    await client.query('CREATE MATERIALIZED VIEW gone AS SELECT a FROM t');
    await reading('SUBSCRIBE gone', async (reader) => {
      await reader.take(2);
      await client.query('DROP MATERIALIZED VIEW gone');
      expect(await reader.done).toMatchObject({ code: '42P01', message: 'relation public.gone, which is subscribed to, was dropped' });
    });
  });

  it('says what it cannot do', async () => {
    await client.query('CREATE TABLE ordinary (a int)');
    const said: Record<string, string> = {};
    for (const sql of [
      'SUBSCRIBE ordinary',
      'SUBSCRIBE nothing',
      'SUBSCRIBE s',
      'SUBSCRIBE t ENVELOPE UPSERT (KEY (a, c))',
      'SUBSCRIBE t ENVELOPE DEBEZIUM (KEY (a, a))',
      'SUBSCRIBE t WITHIN TIMESTAMP ORDER BY c',
      'SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a LIMIT 1',
      "SUBSCRIBE t UP TO 'soon'",
      'SUBSCRIBE t UP TO NULL',
      'SUBSCRIBE (SELECT 1) AS OF 7',
      'SUBSCRIBE (SELECT nothing FROM t)',
      'SUBSCRIBE (SELECT generate_series(1, 200000))',
      'SUBSCRIBE USING DURABLE SUBSCRIPTION nothing',
      'BEGIN ISOLATION LEVEL REPEATABLE READ; SUBSCRIBE t',
      'DECLARE c CURSOR FOR SUBSCRIBE t',
      'COPY (SUBSCRIBE t) TO STDOUT (FORMAT parquet)',
      'COPY (SUBSCRIBE t) TO STDOUT (FORMAT binary, HEADER)',
      "COPY (SUBSCRIBE (SELECT a, interval '1 day' AS age FROM t)) TO STDOUT (FORMAT binary)",
    ]) {
      said[sql] = await client.failure(sql);
      await client.query('ROLLBACK');
    }
    expect(said).toMatchInlineSnapshot(`
      {
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SUBSCRIBE t": "ERROR 25001: SUBSCRIBE cannot be executed in a REPEATABLE READ transaction
      DETAIL: All statements of such a transaction see one snapshot, in which nothing changes any more.
      HINT: BEGIN ISOLATION LEVEL READ COMMITTED;",
        "COPY (SUBSCRIBE (SELECT a, interval '1 day' AS age FROM t)) TO STDOUT (FORMAT binary)": "ERROR 0A000: column "age" has no binary format here; ask for it as text",
        "COPY (SUBSCRIBE t) TO STDOUT (FORMAT binary, HEADER)": "ERROR 0A000: COPY (SUBSCRIBE ..) does not support HEADER in BINARY mode
      HINT: Leave it out, or use text or csv.",
        "COPY (SUBSCRIBE t) TO STDOUT (FORMAT parquet)": "ERROR 0A000: COPY (SUBSCRIBE ..) does not support FORMAT parquet
      HINT: Use text, csv or binary.",
        "DECLARE c CURSOR FOR SUBSCRIBE t": "ERROR 25P01: DECLARE CURSOR can only be used in transaction blocks",
        "SUBSCRIBE (SELECT 1) AS OF 7": "ERROR 0A000: SUBSCRIBE (query) cannot begin in the past
      HINT: Create a materialized view with the query and a durable subscription for it, or leave AS OF out.",
        "SUBSCRIBE (SELECT generate_series(1, 200000))": "ERROR 54000: the result of the query is too large to subscribe to
      DETAIL: It has more than 100000 rows, which Millrace would have to hold in memory.
      HINT: CREATE MATERIALIZED VIEW my_view AS .. with the query, and SUBSCRIBE TO my_view.",
        "SUBSCRIBE (SELECT nothing FROM t)": "ERROR 42703: column "nothing" does not exist",
        "SUBSCRIBE USING DURABLE SUBSCRIPTION nothing": "ERROR 42704 at <nothing>: durable subscription "nothing" does not exist
      HINT: SELECT * FROM millrace.subscriptions; lists what there is.",
        "SUBSCRIBE nothing": "ERROR 42P01 at <nothing>: relation "nothing" does not exist",
        "SUBSCRIBE ordinary": "ERROR 42809 at <ordinary>: cannot subscribe to relation ordinary
      DETAIL: It is not one that Millrace keeps, so nobody follows its changes.
      HINT: Create a stream table over it, or give a query over live relations: SUBSCRIBE (SELECT * FROM ordinary);",
        "SUBSCRIBE s": "ERROR 42809 at <s>: cannot subscribe to source s
      HINT: Subscribe to a table of it: CREATE TABLE .. FROM SOURCE.",
        "SUBSCRIBE t ENVELOPE DEBEZIUM (KEY (a, a))": "ERROR 42703 at <a>: invalid keys in SUBSCRIBE ENVELOPE DEBEZIUM (KEY (..))
      DETAIL: Column "a" is named twice.
      HINT: The columns are: a, b.",
        "SUBSCRIBE t ENVELOPE UPSERT (KEY (a, c))": "ERROR 42703 at <c>: invalid keys in SUBSCRIBE ENVELOPE UPSERT (KEY (..))
      DETAIL: There is no column "c".
      HINT: The columns are: a, b.",
        "SUBSCRIBE t UP TO 'soon'": "ERROR 22023 at <'>: AS OF or UP TO should be castable to a (non-null) mz_timestamp value
      DETAIL: It is soon.
      HINT: Give milliseconds as in mz_timestamp, or a time; millrace.now() is the present.",
        "SUBSCRIBE t UP TO NULL": "ERROR 22023 at <NULL>: AS OF or UP TO should be castable to a (non-null) mz_timestamp value
      DETAIL: It is NULL.
      HINT: Give milliseconds as in mz_timestamp, or a time; millrace.now() is the present.",
        "SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a LIMIT 1": "ERROR 42P10 at <a>: invalid ORDER BY in SUBSCRIBE WITHIN TIMESTAMP ORDER BY
      DETAIL: Only expressions can be named.
      HINT: The columns are: mz_diff, a, b.",
        "SUBSCRIBE t WITHIN TIMESTAMP ORDER BY c": "ERROR 42P10 at <c>: invalid ORDER BY in SUBSCRIBE WITHIN TIMESTAMP ORDER BY
      DETAIL: column "c" does not exist
      HINT: The columns are: mz_diff, a, b.",
      }
    `);
  });
});
