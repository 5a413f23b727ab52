/** A source whose stream cannot go on: what it says, and how its tables are brought up to date without being dropped. */
import pg from 'pg';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let origin: TestPostgres;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeEach(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({});
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(`CREATE TABLE account (id integer PRIMARY KEY, owner text, balance numeric);
    INSERT INTO account SELECT g, 'o' || g % 10, g FROM generate_series(1, 1000) g;
    CREATE TABLE entry (account integer, note text); ALTER TABLE entry REPLICA IDENTITY FULL;
    INSERT INTO entry SELECT g % 100, 'n' || g % 3 FROM generate_series(1, 500) g;
    CREATE PUBLICATION p FOR TABLE account, entry`);
  extended = await extendedClient(upstream.address);
  await extended.run(`CREATE CONNECTION c TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`);
  engine = startEngine(upstream.address);
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  await extended.run(`CREATE SCHEMA v1; CREATE TABLE v1.account FROM SOURCE s (REFERENCE account); CREATE TABLE v1.entry FROM SOURCE s (REFERENCE entry);
    CREATE MATERIALIZED VIEW v1.total AS SELECT count(*) AS n, sum(balance) AS total FROM v1.account;
    CREATE MATERIALIZED VIEW v1.both AS SELECT a.id, a.balance, e.note FROM v1.account a JOIN v1.entry e ON e.account = a.id`);
}, 120_000);
afterEach(async () => {
  await engine?.stop();
  await extended?.end();
  await admin?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

const rows = (client: pg.Client, sql: string): Promise<string[]> =>
  texts(client, sql).then((found) => found.map((row) => row.join('|')).sort());
const status = (): Promise<string> => rows(extended.client, 'SELECT status, error FROM millrace.sources').then(([row]) => row ?? '');
const becomes = (wanted: RegExp): Promise<void> => expect.poll(status, { timeout: 15_000 }).toMatch(wanted);

/** Everything is as at the origin, at once or soon. */
async function same(): Promise<void> {
  const queries: [string, string][] = [
    ['SELECT * FROM account', 'SELECT * FROM v1.account'],
    ['SELECT * FROM entry', 'SELECT * FROM v1.entry'],
    ['SELECT count(*), sum(balance) FROM account', 'SELECT * FROM v1.total'],
    ['SELECT a.id, a.balance, e.note FROM account a JOIN entry e ON e.account = a.id', 'SELECT * FROM v1.both'],
  ];
  for (const [there, here] of queries) {
    const wanted = await rows(admin, there);
    await expect.poll(() => rows(extended.client, here).catch((error: Error) => [error.message]), { timeout: 15_000 }).toEqual(wanted);
  }
}

const changeMuch = `UPDATE account SET balance = balance + 1 WHERE id % 7 = 0; DELETE FROM account WHERE id % 11 = 0;
  INSERT INTO account SELECT g, NULL, 1.50 FROM generate_series(2000, 2050) g; UPDATE account SET id = id + 10000 WHERE id % 13 = 0;
  DELETE FROM entry WHERE account < 5; INSERT INTO entry SELECT 7, 'again' FROM generate_series(1, 3); UPDATE account SET balance = 2.0 WHERE balance = 2`;

const loseSlot = `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name ~ '^millrace'`;

test('a slot that is gone is told of; RESYNC writes what differs, and no more, while readers go on', async () => {
  await same();
  engine.kill();
  for (const end = Date.now() + 10_000; Date.now() < end; ) {
    await admin.query(loseSlot);
    const dropped = await admin.query(
      "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^millrace' AND NOT active",
    );
    if (dropped.rowCount === 1) break;
  }
  await admin.query(changeMuch);
  await becomes(
    /^stalled\|replication slot "millrace_\w+" no longer exists on the origin; ALTER SOURCE public.s RESYNC brings its tables up to date$/,
  );
  expect((await rows(extended.client, 'SELECT count(*) FROM v1.account'))[0]).toBe('1000');

  let going = true;
  const reading = (async () => {
    const own = new pg.Client({ connectionString: upstream.url });
    await own.connect();
    let reads = 0;
    while (going) {
      // Both change in one epoch or neither, and nobody ever sees an empty table.
      const [row] = await texts(own, 'SELECT (SELECT count(*) FROM v1.account) = n, n > 500 FROM v1.total');
      expect(row).toEqual(['t', 't']);
      reads++;
    }
    await own.end();
    return reads;
  })();
  await extended.run('ALTER SOURCE s RESYNC');
  await same();
  going = false;
  expect(await reading).toBeGreaterThan(0);
  await admin.query("UPDATE account SET owner = 'later' WHERE id < 20; DELETE FROM entry WHERE account = 50");
  await same();
  // What was made for it is gone.
  expect(await rows(extended.client, 'SELECT count(*) FROM millrace.storage')).toEqual(['2']);
});

test('rows that are the same are not written again', async () => {
  await extended.client.query(`CREATE TABLE was AS SELECT xmin::text AS version, c1 FROM millrace_data.s${await storage('account')}`);
  await admin.query("UPDATE account SET owner = 'x' WHERE id = 5");
  await extended.run('ALTER SOURCE s RESYNC');
  await same();
  const written = await rows(
    extended.client,
    `SELECT n.c1 FROM millrace_data.s${await storage('account')} n LEFT JOIN was ON was.c1 = n.c1 AND was.version = n.xmin::text WHERE was.c1 IS NULL`,
  );
  expect(written).toEqual(['5']);
});

test('with AUTO RESYNC nobody has to ask; kill -9 amid it begins it again', async () => {
  await extended.run('ALTER SOURCE s SET (AUTO RESYNC)');
  engine.kill();
  for (const end = Date.now() + 10_000; Date.now() < end; ) {
    await admin.query(loseSlot);
    const dropped = await admin.query(
      "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^millrace' AND NOT active",
    );
    if (dropped.rowCount === 1) break;
  }
  await admin.query(changeMuch);
  for (let kills = 0; kills < 4; kills++) {
    await new Promise((resolve) => setTimeout(resolve, 300 + kills * 150));
    await admin.query(`UPDATE account SET balance = balance + 1 WHERE id % 17 = ${kills}`);
    await engine.restart();
  }
  await same();
  await becomes(/^running/);
});

test('a table that could not take a change is mended once it can', async () => {
  const table = `millrace_data.s${await storage('account')}`;
  await extended.client.query(`ALTER TABLE ${table} ADD CONSTRAINT small CHECK (c1 < 3000)`);
  await admin.query("INSERT INTO account VALUES (3000, 'large', 1); UPDATE account SET balance = 0 WHERE id = 1");
  const read = (): Promise<unknown> =>
    texts(extended.client, 'SELECT count(*) FROM v1.account').catch((error: pg.DatabaseError) => error.hint);
  await expect
    .poll(read, { timeout: 15_000 })
    .toMatch(/^ALTER SOURCE public.s RESYNC; once nothing stands in its way, or DROP TABLE v1.account/);
  // The others go on.
  await admin.query("INSERT INTO entry VALUES (1, 'later')");
  await expect.poll(() => rows(extended.client, "SELECT note FROM v1.entry WHERE note = 'later'"), { timeout: 15_000 }).toEqual(['later']);
  await extended.client.query(`ALTER TABLE ${table} DROP CONSTRAINT small`);
  await extended.run('ALTER SOURCE s RESYNC');
  await same();
});

test('a slot that someone else has read from is noticed: what they took is missing here', async () => {
  engine.kill();
  await admin.query(changeMuch);
  for (const end = Date.now() + 10_000; Date.now() < end; ) {
    await admin.query(loseSlot);
    const moved = await admin
      .query(
        "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots WHERE slot_name ~ '^millrace' AND NOT active",
      )
      .catch(() => ({ rowCount: 0 }));
    if (moved.rowCount === 1) break;
  }
  await becomes(
    /^stalled\|replication slot "millrace_\w+" is at \w+\/\w+, only \w+\/\w+ has been reached here: someone else read from it, or /,
  );
  await extended.run('ALTER SOURCE s RESYNC');
  await same();
});

test('an idle origin is told how far we are, and a restart after that finds nothing wrong', async () => {
  const confirmed = (): Promise<string[]> =>
    rows(admin, "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() - 1000 FROM pg_replication_slots WHERE slot_name ~ '^millrace'");
  await admin.query('CREATE TABLE elsewhere AS SELECT generate_series(1, 10000) g');
  await expect.poll(confirmed, { timeout: 15_000 }).toEqual(['t']);
  await engine.restart();
  await admin.query("UPDATE account SET owner = 'again' WHERE id = 3");
  await same();
  await becomes(/^running/);
});

test('a table taken out of the publication and put back between two looks is noticed, and mended by RESYNC', async () => {
  await admin.query(`BEGIN; ALTER PUBLICATION p DROP TABLE account; COMMIT; UPDATE account SET balance = 0 WHERE id = 1; ALTER PUBLICATION p ADD TABLE account;
    UPDATE account SET balance = 7 WHERE id = 2`);
  await expect
    .poll(() => rows(extended.client, 'SELECT * FROM v1.total').catch((error: Error) => error.message), { timeout: 15_000 })
    .toMatch(/source table public.account is no longer in publication "p"/);
  // Others go on.
  expect((await rows(extended.client, 'SELECT count(*) FROM v1.entry'))[0]).toBe('500');
  await extended.run('ALTER SOURCE s RESYNC');
  await same();
});

test('a statement about a source that is none, or of another', async () => {
  await expect(extended.run('ALTER SOURCE nowhere RESYNC')).rejects.toThrow(/source "nowhere" does not exist/);
  await extended.run('ALTER SOURCE IF EXISTS nowhere RESYNC');
  await expect(extended.run('ALTER SOURCE v1.total RESYNC')).rejects.toThrow(/is not a source/);
});

async function storage(table: string): Promise<string> {
  const found = await texts(extended.client, `SELECT id FROM millrace.storage WHERE origin_name = '${table}'`);
  return found[0]?.[0] ?? '';
}

test('on 17 and later the slot is one that standbys synchronize', async () => {
  expect(await rows(admin, "SELECT failover FROM pg_replication_slots WHERE slot_name ~ '^millrace'")).toEqual(['t']);
});
