/** Origins that do not answer, do not let in, or lack what replication needs: each its own error; and the way back. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { eventually, leadsTo, type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;
let replica: TestPostgres;
const shown = (text: string): string => text.replaceAll(String(stage.origin.port), 'PORT').replaceAll(String(replica.port), 'PORT');
beforeAll(async () => {
  [stage, replica] = await Promise.all([
    startStage({ origin: { settings: { wal_level: 'logical', max_replication_slots: '2', password_encryption: 'scram-sha-256' } } }),
    startPostgres({ settings: { wal_level: 'replica' } }),
  ]);
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await origin.query(`
    CREATE ROLE guarded LOGIN REPLICATION PASSWORD 'right'; GRANT SELECT ON t TO guarded;
    CREATE ROLE weak LOGIN; CREATE ROLE blind LOGIN REPLICATION`);
  const hba = join(stage.origin.dataDir, 'pg_hba.conf');
  writeFileSync(hba, `host all,replication guarded 127.0.0.1/32 scram-sha-256\n${readFileSync(hba, 'utf8')}`);
  await origin.query('SELECT pg_reload_conf()');
  await client.query('CREATE TABLE t FROM SOURCE s (REFERENCE public.t)');
});
afterAll(async () => {
  await stage.stop();
  await replica.stop();
});

describe('an origin that is not fit', () => {
  it('is told apart by what is wrong', async () => {
    const answers: string[] = [];
    const connect = (options: string): string => `CREATE CONNECTION n TO POSTGRES (${options})`;
    const { host, port } = stage.origin;
    await client.query("CREATE SECRET wrong AS 'wrong'; CREATE SECRET correct AS 'right'");
    await client.query(`
      CREATE CONNECTION to_replica TO POSTGRES (${leadsTo(replica)});
      CREATE CONNECTION as_weak TO POSTGRES (${leadsTo(stage.origin, 'weak')});
      CREATE CONNECTION as_blind TO POSTGRES (${leadsTo(stage.origin, 'blind')})`);
    for (const sql of [
      connect(`HOST '${host}', PORT ${port}, USER 'guarded', DATABASE 'postgres', PASSWORD SECRET wrong`),
      connect(`HOST '${host}', PORT ${port}, USER 'guarded', DATABASE 'postgres'`),
      connect(`HOST '${host}', PORT ${port}, USER 'nobody', DATABASE 'postgres'`),
      connect(`HOST '${host}', PORT ${port}, USER 'postgres', DATABASE 'nowhere'`),
      connect(`HOST '${host}', PORT 1, USER 'postgres', DATABASE 'postgres'`),
      connect(`HOST 'no-such-host.invalid', USER 'postgres', DATABASE 'postgres'`),
      connect(`HOST '${host}', PORT ${port}, USER 'postgres', DATABASE 'postgres', SSL MODE 'require'`),
      "CREATE SOURCE n FROM POSTGRES CONNECTION to_replica (PUBLICATION 'mz_source')",
      "CREATE SOURCE n FROM POSTGRES CONNECTION as_weak (PUBLICATION 'mz_source')",
      "CREATE SOURCE n FROM POSTGRES CONNECTION c (PUBLICATION 'nope')",
    ]) {
      answers.push(shown(await client.failure(sql)));
    }
    await origin.query("SELECT pg_create_physical_replication_slot('taken')");
    answers.push(await client.failure("CREATE SOURCE n FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')"));
    await origin.query("SELECT pg_drop_replication_slot('taken')");
    await client.query("CREATE SOURCE unseeing FROM POSTGRES CONNECTION as_blind (PUBLICATION 'mz_source')");
    answers.push(await client.failure('CREATE TABLE n FROM SOURCE unseeing (REFERENCE public.t)'));
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 28P01: failed to connect to PostgreSQL database
      DETAIL: password authentication failed for user "guarded"
      HINT: Correct the USER of connection "n" or its password: ALTER SECRET ... AS '...';",
        "ERROR 28P01: failed to connect to PostgreSQL database
      DETAIL: The server asks for the password of "guarded", and connection "n" has none.
      HINT: Type: CREATE SECRET my_password AS '...'; and give the connection PASSWORD SECRET my_password.",
        "ERROR 28P01: failed to connect to PostgreSQL database
      DETAIL: role "nobody" does not exist
      HINT: Correct the USER of connection "n" or its password: ALTER SECRET ... AS '...';",
        "ERROR 08001: failed to connect to PostgreSQL database
      DETAIL: database "nowhere" does not exist
      HINT: Correct the DATABASE of connection "n".",
        "ERROR 08001: failed to connect to PostgreSQL database
      DETAIL: connect ECONNREFUSED 127.0.0.1:1
      HINT: Check that a PostgreSQL server listens at 127.0.0.1:1 and that this machine may reach it.",
        "ERROR 08001: failed to connect to PostgreSQL database
      DETAIL: getaddrinfo ENOTFOUND no-such-host.invalid
      HINT: Check that a PostgreSQL server listens at no-such-host.invalid:5432 and that this machine may reach it.",
        "ERROR 08001: failed to connect to PostgreSQL database
      DETAIL: The server does not support SSL connections
      HINT: Correct the SSL MODE of connection "n" or its certificates.",
        "ERROR 55000: origin server must have wal_level = logical, but has replica
      DETAIL: Connection "to_replica" leads to 127.0.0.1:PORT.
      HINT: On the origin: ALTER SYSTEM SET wal_level = logical; then restart it.",
        "ERROR 42501: role "weak" of connection "as_weak" may not replicate
      DETAIL: It has neither the REPLICATION attribute nor superuser on the origin.
      HINT: On the origin: ALTER ROLE weak REPLICATION;",
        "ERROR 42704: publication "nope" does not exist on the origin
      DETAIL: Connection "c" leads to database "postgres" at 127.0.0.1:PORT.
      HINT: On the origin: CREATE PUBLICATION nope FOR ALL TABLES;",
        "ERROR 53400: origin server has no free replication slot
      DETAIL: max_replication_slots is 2 and all are in use.
      HINT: Drop a slot that is not needed (see pg_replication_slots on the origin) or raise max_replication_slots.",
        "ERROR 42501 at <public>: role "blind" may not read table public.t on the origin
      HINT: On the origin: GRANT SELECT ON public.t TO blind;",
      ]
    `);
    await client.query('DROP SOURCE unseeing');
    await client.query(`CREATE CONNECTION n TO POSTGRES (HOST '${host}', PORT 1, USER 'u', DATABASE 'd') WITH (VALIDATE = false)`);
    expect(shown(await client.failure('VALIDATE CONNECTION n'))).toContain('ERROR 08001');
    await client.query('VALIDATE CONNECTION c; DROP CONNECTION n, to_replica, as_weak, as_blind');
    expect(await client.rows('SELECT count(*)::int FROM t')).toEqual([[2]]);
    expect(await client.rows('SELECT count(*)::int FROM millrace.sources')).toEqual([[1]]);
  });
});

describe('a source whose login stops working', () => {
  it('says so, and goes on once the secret or the connection is right', async () => {
    await client.query(`CREATE CONNECTION guarded TO POSTGRES (${leadsTo(stage.origin, 'guarded')}, PASSWORD SECRET correct)`);
    await client.query("CREATE SOURCE g FROM POSTGRES CONNECTION guarded (PUBLICATION 'mz_source')");
    await client.query('CREATE TABLE gt FROM SOURCE g (REFERENCE public.t)');
    const cut = "ALTER ROLE guarded PASSWORD 'new'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guarded'";
    await origin.query(cut);
    await origin.query("INSERT INTO t VALUES (3, 'three')");
    const status = "SELECT status, error FROM millrace.sources WHERE name = 'g'";
    await eventually(client, status, [['stalled', expect.stringContaining('password authentication failed')]]);
    expect(await client.failure('VALIDATE CONNECTION guarded')).toMatchInlineSnapshot(`
      "ERROR 28P01: failed to connect to PostgreSQL database
      DETAIL: password authentication failed for user "guarded"
      HINT: Correct the USER of connection "guarded" or its password: ALTER SECRET ... AS '...';"
    `);
    expect(await client.rows("SELECT status FROM mz_internal.mz_source_statuses WHERE name = 'g'")).toEqual([['stalled']]);
    // What is there can be read meanwhile, and others go on.
    expect(await client.rows('SELECT count(*)::int FROM gt')).toEqual([[2]]);
    await eventually(client, 'SELECT count(*)::int FROM t', [[3]]);
    await client.query("ALTER SECRET correct AS 'new'");
    await eventually(client, status, [['running', null]]);
    await eventually(client, 'SELECT count(*)::int FROM gt', [[3]]);
    await client.query('VALIDATE CONNECTION guarded');

    await origin.query(cut.replace("'new'", "'newer'"));
    await eventually(client, status, [['stalled', expect.stringContaining('password authentication failed')]]);
    await client.query("CREATE SECRET newer AS 'newer'; ALTER CONNECTION guarded SET (PASSWORD SECRET newer)");
    await origin.query("INSERT INTO t VALUES (4, 'four')");
    await eventually(client, 'SELECT count(*)::int FROM gt', [[4]]);
    expect(await client.failure('ALTER CONNECTION guarded SET (PASSWORD SECRET wrong)')).toContain('ERROR 28P01');
    await eventually(client, status, [['running', null]]);
  });
});

describe('dropping behind the back of Millrace', () => {
  it('a facade: the rest is cleared away', async () => {
    const direct = await stage.direct(stage.upstream);
    await client.query(
      'CREATE TABLE gone FROM SOURCE s (REFERENCE public.t) WITH (TEXT COLUMNS (a)); CREATE MATERIALIZED VIEW over AS SELECT max(a) FROM gone',
    );
    const [before] = await direct.rows('SELECT count(*)::int FROM millrace.storage');
    await direct.query('DROP VIEW over');
    await eventually(direct, "SELECT count(*)::int FROM millrace.relation WHERE kind = 'view'", [[0]]);
    await direct.query('DROP VIEW gone');
    await eventually(direct, 'SELECT count(*)::int FROM millrace.storage', [[Number(before?.[0]) - 1]]);
    expect(
      await direct.rows(
        "SELECT count(*)::int FROM millrace.relation r WHERE r.kind IN ('table', 'view') AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = r.facade)",
      ),
    ).toEqual([[0]]);
  });

  it('what a live view reads: the view says so', async () => {
    const direct = await stage.direct(stage.upstream);
    await client.query('CREATE VIEW plain AS SELECT a FROM t; CREATE MATERIALIZED VIEW reader AS SELECT count(*)::int FROM plain');
    await direct.query('DROP VIEW plain CASCADE');
    await expect.poll(() => client.failure('SELECT * FROM reader').catch(String), { timeout: 10_000 }).toContain('has lost its definition');
    expect(await client.failure('SELECT * FROM reader')).toMatchInlineSnapshot(`
      "ERROR 55000: materialized view has lost its definition: something it reads was dropped with CASCADE
      DETAIL: It concerns public.reader.
      HINT: DROP MATERIALIZED VIEW public.reader; and create it again."
    `);
    await client.query('DROP MATERIALIZED VIEW reader');
  });

  it('a source: its slot goes too', async () => {
    const direct = await stage.direct(stage.upstream);
    await client.query('DROP SOURCE g CASCADE; DROP CONNECTION guarded');
    await eventually(origin, 'SELECT count(*)::int FROM pg_replication_slots', [[1]]);
    await client.query("CREATE SOURCE brief FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')");
    await direct.query('DROP VIEW brief');
    await eventually(origin, 'SELECT count(*)::int FROM pg_replication_slots', [[1]]);
    await eventually(direct, 'SELECT count(*)::int FROM millrace.source', [[1]]);
  });
});

describe('CASCADE through plain views', () => {
  it('takes live views on both sides', async () => {
    const build = async (): Promise<void> => {
      await client.query('CREATE SCHEMA w; CREATE TABLE w.t FROM SOURCE s (REFERENCE public.t); CREATE VIEW w.p1 AS SELECT a FROM w.t');
      await client.query('CREATE MATERIALIZED VIEW w.m1 AS SELECT a FROM w.p1');
      await client.query('CREATE VIEW p2 AS SELECT a FROM w.m1');
      await client.query('CREATE MATERIALIZED VIEW m2 AS SELECT count(*)::int FROM p2');
      await client.query('CREATE VIEW w.p3 AS SELECT * FROM m2');
      expect(await client.rows('SELECT * FROM w.p3')).toEqual([[4]]);
      client.takeNotices();
    };
    await build();
    expect(await client.failure('DROP VIEW w.p1')).toMatchInlineSnapshot(`
      "ERROR 2BP01: cannot drop view "w.p1" because other objects depend on it
      DETAIL: materialized view w.m1 depends on view w.p1
      view public.p2 depends on materialized view w.m1
      materialized view public.m2 depends on view public.p2
      view w.p3 depends on materialized view public.m2
      HINT: Use DROP ... CASCADE to drop the dependent objects too."
    `);
    await client.query('DROP VIEW w.p1 CASCADE');
    expect(client.takeNotices()).toMatchInlineSnapshot(`
      [
        "drop cascades to 4 other objects
      drop cascades to materialized view w.m1
      drop cascades to view public.p2
      drop cascades to materialized view public.m2
      drop cascades to view w.p3",
      ]
    `);
    expect(await client.rows('SELECT name FROM millrace.relations ORDER BY 1')).toEqual([['t'], ['t']]);
    await client.query('DROP SCHEMA w CASCADE');
    await build();
    expect(await client.failure('DROP SCHEMA w')).toMatchInlineSnapshot(`
      "ERROR 2BP01: cannot drop schema "w" because other objects depend on it
      DETAIL: table w.t depends on schema w
      materialized view w.m1 depends on schema w
      HINT: Use DROP ... CASCADE to drop the dependent objects too."
    `);
    await client.query("CREATE SECRET w.x AS 'x'; DROP SCHEMA w CASCADE");
    expect(client.takeNotices()).toMatchInlineSnapshot(`
      [
        "drop cascades to 7 other objects
      drop cascades to secret w.x
      drop cascades to table w.t
      drop cascades to materialized view w.m1
      drop cascades to view w.p1
      drop cascades to view public.p2
      drop cascades to materialized view public.m2
      drop cascades to view w.p3",
      ]
    `);
    expect(await client.rows('SELECT name FROM millrace.relations')).toEqual([['t']]);
    expect(
      await client.rows("SELECT to_regclass('p2'), to_regclass('m2'), (SELECT count(*)::int FROM millrace.secrets WHERE name = 'x')"),
    ).toEqual([[null, null, 0]]);
    await client.query("CREATE SCHEMA w; CREATE SECRET w.x AS 'x'");
    expect(await client.failure('DROP SCHEMA w')).toMatchInlineSnapshot(`
      "ERROR 2BP01: cannot drop schema "w" because other objects depend on it
      DETAIL: secret w.x depends on schema w
      HINT: Use DROP ... CASCADE to drop the dependent objects too."
    `);
    await client.query('DROP SCHEMA w CASCADE');
  });
});
