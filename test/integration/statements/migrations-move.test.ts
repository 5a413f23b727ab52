/** Columns move to a table of their own while they are in use: tables of every kind, whatever they are called, and whoever is in the way. */
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { changesOf, expectRows, factsOf, leftBehind, type MigrationStage, startMigrationStage } from './migrations-stage.ts';
import type { TestClient } from './stage.ts';

for (const version of [18, 15] as const) {
  describe(`MOVE COLUMNS on ${version}`, () => {
    let on: MigrationStage;
    let client: TestClient;
    let upstream: TestClient;
    let clerk: TestClient;

    beforeAll(async () => {
      on = await startMigrationStage(version);
      ({ client, upstream, clerk } = on);
    }, 180_000);
    afterAll(() => on?.stage.stop());

    const state: MigrationStage['state'] = (name, columns) => on.state(name, columns);
    const alter: MigrationStage['alter'] = (name, ...steps) => on.alter(name, ...steps);
    const clean: MigrationStage['clean'] = (name) => on.clean(name);

    test('a partitioned table with a key of two columns, a generated column, and a reference to it', { timeout: 60_000 }, async () => {
      await upstream.query(
        `CREATE SCHEMA parts;
        CREATE TABLE parts.t (region text, id int, mail text UNIQUE NULLS DISTINCT, seen date, n int DEFAULT 7, twice int GENERATED ALWAYS AS (n * 2) STORED, PRIMARY KEY (region, id)) PARTITION BY LIST (region)`.replace(
          ' UNIQUE NULLS DISTINCT',
          '',
        ),
      );
      await upstream.query(`CREATE TABLE parts.t_eu PARTITION OF parts.t FOR VALUES IN ('eu'); CREATE TABLE parts.t_us PARTITION OF parts.t FOR VALUES IN ('us');
        CREATE TABLE parts.visits (region text, id int, FOREIGN KEY (region, id) REFERENCES parts.t ON UPDATE CASCADE ON DELETE CASCADE);
        INSERT INTO parts.t (region, id, mail, seen) SELECT r, i, CASE WHEN i < 3 THEN r || i END, CASE WHEN i = 3 THEN date '2020-01-01' END FROM unnest('{eu,us}'::text[]) r, generate_series(1, 4) i;
        INSERT INTO parts.visits VALUES ('eu', 1), ('us', 2)`);
      const before = await factsOf(upstream, 'parts');
      await client.query(
        'CREATE MIGRATION parts MOVE COLUMNS (mail, seen) FROM parts.t TO TABLE parts.mails KEY (id AS "of", region) ABSENT WHEN NULL WITH (CUTOVER = MANUAL)',
      );
      await upstream.query(
        "UPDATE parts.t SET region = 'us', id = 9 WHERE region = 'eu' AND id = 1; INSERT INTO parts.mails VALUES (4, 'eu', 'by the new name', NULL)",
      );
      await clean('parts');
      await alter('parts', 'CUTOVER');
      await upstream.query(
        "UPDATE parts.t SET region = 'eu', mail = 'moved back', n = n + 1 WHERE region = 'us' AND id = 9; DELETE FROM parts.t WHERE id = 3; INSERT INTO parts.t (region, id, seen) VALUES ('us', 30, '2021-01-01')",
      );
      expect(await client.rows("UPDATE parts.t SET mail = NULL WHERE id = 2 AND region = 'eu' RETURNING id, mail, twice")).toEqual([
        [2, null, 14],
      ]);
      await upstream.query('UPDATE parts.mails SET seen = \'2022-02-02\' WHERE "of" = 30');
      const wanted = `('eu', 9, 'moved back', NULL::date, 8, 16), ('eu', 2, NULL, NULL, 7, 14), ('eu', 4, 'by the new name', NULL, 7, 14), ('us', 1, 'us1', NULL, 7, 14), ('us', 2, 'us2', NULL, 7, 14), ('us', 4, NULL, NULL, 7, 14), ('us', 30, NULL, '2022-02-02', 7, 14)`;
      await expectRows(upstream, 'SELECT * FROM parts.t', wanted);
      await clean('parts');
      await alter('parts', 'REVERT', 'VERIFY');
      await expectRows(upstream, 'SELECT * FROM parts.t', wanted);
      await expectRows(upstream, 'SELECT * FROM parts.visits', "('eu', 9), ('us', 2)");
      expect(changesOf(before, await factsOf(upstream, 'parts')).gone).toEqual([]);
      await alter('parts', 'CUTOVER', 'FINALIZE');
      await expectRows(
        upstream,
        'SELECT region, id, mail, seen, n, twice FROM parts.t LEFT JOIN parts.mails m ON ("of", m.region) = (id, t.region)'.replace(
          'SELECT region',
          'SELECT t.region',
        ),
        wanted,
      );
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('an identity key, names that need quotes, a view of the user, rights of a role, TRUNCATE', { timeout: 60_000 }, async () => {
      const odd = '"Odd ""Schema"" $millrace$"';
      const table = `${odd}."Table's $$ name"`;
      const moved = `${odd}."New \\Table $millrace$"`;
      await upstream.query(`CREATE SCHEMA ${odd}; GRANT USAGE ON SCHEMA ${odd} TO clerk;
        CREATE TABLE ${table} ("The ""Id""" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "select" text, "E-Mail $millrace$" text CONSTRAINT "one's mail" UNIQUE CHECK ("E-Mail $millrace$" <> ''), "NEW" text DEFAULT 'it''s');
        INSERT INTO ${table} ("select", "E-Mail $millrace$") VALUES ('a', 'a@'), ('b', NULL);
        CREATE VIEW ${odd}."A View" AS SELECT "select" AS s, "NEW" FROM ${table};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ${table} TO clerk; GRANT SELECT ON ${odd}."A View" TO clerk`);
      const schema = 'Odd "Schema" $millrace$';
      const before = await factsOf(upstream, schema);
      expect(
        await clerk.failure(
          `CREATE MIGRATION odd MOVE COLUMNS ("E-Mail $millrace$") FROM ${table} TO TABLE ${moved} KEY ("The ""Id""" AS "Whose Id") ABSENT WHEN NULL`,
        ),
      ).toMatch(/42501: must be owner/);
      await client.query(
        `CREATE MIGRATION odd MOVE COLUMNS ("E-Mail $millrace$") FROM ${table} TO TABLE ${moved} KEY ("The ""Id""" AS "Whose Id") ABSENT WHEN NULL WITH (CUTOVER = MANUAL)`,
      );
      const work = async (n: number): Promise<void> => {
        expect(
          await clerk.rows(
            `INSERT INTO ${table} ("select", "E-Mail $millrace$") VALUES ('c${n}', 'c${n}@') RETURNING "NEW", "E-Mail $millrace$"`,
          ),
        ).toEqual([["it's", `c${n}@`]]);
        expect(
          await clerk.rows(
            `UPDATE ${table} SET "E-Mail $millrace$" = 'd${n}@', "NEW" = 'n' WHERE "select" = 'c${n}' RETURNING "E-Mail $millrace$"`,
          ),
        ).toEqual([[`d${n}@`]]);
        expect(
          await clerk.rows(
            `UPDATE ${moved} SET "E-Mail $millrace$" = 'e${n}@' WHERE "E-Mail $millrace$" = 'd${n}@' RETURNING "E-Mail $millrace$"`,
          ),
        ).toEqual([[`e${n}@`]]);
        expect(await clerk.failure(`UPDATE ${table} SET "E-Mail $millrace$" = '' WHERE "select" = 'c${n}'`)).toMatch(/23514/);
        expect(await clerk.failure(`INSERT INTO ${table} ("E-Mail $millrace$") VALUES ('e${n}@')`)).toMatch(/23505/);
        expect(await clerk.rows(`SELECT "NEW" FROM ${odd}."A View" WHERE s = 'c${n}'`)).toEqual([['n']]);
      };
      await work(1);
      await clean('odd');
      await alter('odd', 'CUTOVER');
      expect(await state('odd')).toEqual(['cut_over', null]);
      await work(2);
      await clean('odd');
      await alter('odd', 'REVERT', 'VERIFY');
      expect(changesOf(before, await factsOf(upstream, schema)).gone).toEqual([]);
      await work(3);
      const columns = '"select", "E-Mail $millrace$", "NEW"';
      await expectRows(
        upstream,
        `SELECT ${columns} FROM ${table}`,
        "('a', 'a@', 'it''s'), ('b', NULL, 'it''s'), ('c1', 'e1@', 'n'), ('c2', 'e2@', 'n'), ('c3', 'e3@', 'n')",
      );
      await upstream.query(`TRUNCATE ${table}; INSERT INTO ${table} ("select", "E-Mail $millrace$") VALUES ('z', 'z@')`);
      await alter('odd', 'CUTOVER');
      await expectRows(upstream, `SELECT "E-Mail $millrace$" FROM ${moved}`, "('z@')");
      await work(4);
      await alter('odd', 'FINALIZE');
      await expectRows(upstream, `SELECT "select", "NEW" FROM ${table}`, "('z', 'it''s'), ('c4', 'n')");
      await expectRows(upstream, `SELECT "E-Mail $millrace$" FROM ${moved}`, "('z@'), ('e4@')");
      expect(await clerk.rows(`SELECT s FROM ${odd}."A View" ORDER BY 1`)).toEqual([['c4'], ['z']]);
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('rights on either name are those of now after every change', { timeout: 60_000 }, async () => {
      await upstream.query(`CREATE SCHEMA rights; GRANT USAGE ON SCHEMA rights TO clerk; CREATE ROLE reader LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA rights TO reader;
        ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader; CREATE TABLE rights.t (id int PRIMARY KEY, mail text); REVOKE ALL ON rights.t FROM reader; INSERT INTO rights.t VALUES (1, 'm'); GRANT SELECT ON rights.t TO clerk`);
      await client.query(
        'CREATE MIGRATION rights MOVE COLUMNS (mail) FROM rights.t TO TABLE rights.mails KEY (id) ABSENT WHEN NULL WITH (CUTOVER = MANUAL)',
      );
      const denied = async (...relations: string[]): Promise<void> => {
        const reader = await on.stage.direct(on.stage.upstream, 'reader');
        for (const relation of relations) expect(await reader.failure(`SELECT * FROM ${relation}`), relation).toMatch(/42501/);
      };
      const [{ id }] = (await upstream.query("SELECT id FROM millrace.migrations WHERE name = 'rights'")).rows as [{ id: string }];
      const images = [`millrace_data.m${id}_up`, `millrace_data.m${id}_down`];
      await denied('rights.t', 'rights.mails', 'rights_new.t', `millrace_data.m${id}`, ...images);
      await upstream.query('GRANT INSERT ON rights.mails TO clerk; REVOKE SELECT ON rights.mails FROM clerk');
      await alter('rights', 'CUTOVER');
      await denied('rights.t', 'rights.mails', 'rights_new.t', `rights.t_m${id}`, ...images);
      expect(
        await upstream.rows(
          "SELECT has_table_privilege('clerk', 'rights.mails', 'SELECT'), has_table_privilege('clerk', 'rights.mails', 'INSERT'), has_table_privilege('clerk', 'rights.t', 'SELECT')",
        ),
      ).toEqual([[false, true, true]]);
      await alter('rights', 'REVERT');
      await denied('rights.t', 'rights.mails', 'rights_new.t', ...images);
      expect(
        await upstream.rows(
          "SELECT has_table_privilege('clerk', 'rights.mails', 'SELECT'), has_table_privilege('clerk', 'rights.mails', 'INSERT')",
        ),
      ).toEqual([[false, true]]);
      await alter('rights', 'VERIFY', 'CANCEL');
      await upstream.query('ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM reader');
      expect(await leftBehind(upstream)).toEqual([]);
      await expectRows(upstream, 'SELECT * FROM rights.t', "(1, 'm')");
    });

    test('who holds the table at the cutover is named, and it goes through when he is gone', { timeout: 60_000 }, async () => {
      await upstream.query("CREATE SCHEMA busy; CREATE TABLE busy.t (id int PRIMARY KEY, mail text); INSERT INTO busy.t VALUES (1, 'm')");
      await client.query(
        'CREATE MIGRATION busy MOVE COLUMNS (mail) FROM busy.t TO TABLE busy.mails KEY (id) ABSENT WHEN NULL WITH (CUTOVER = MANUAL)',
      );
      const holder = await on.stage.direct(on.stage.upstream);
      const [[pid]] = (await holder.rows('SELECT pg_backend_pid()')) as [[number]];
      await holder.query("BEGIN; UPDATE busy.t SET mail = 'held' WHERE id = 1");
      client.takeNotices();
      const cutover = alter('busy', 'CUTOVER');
      await vi.waitFor(async () => expect(await state('busy', "blocked_by -> 0 ->> 'pid'")).toEqual([String(pid)]), {
        timeout: 20_000,
        interval: 50,
      });
      await vi.waitFor(() => expect(client.takeNotices().join('\n')).toContain(String(pid)), { timeout: 20_000, interval: 50 });
      expect(await state('busy', 'phase')).toEqual(['ready']);
      await holder.query('COMMIT');
      await cutover;
      expect(await state('busy', 'phase, blocked_by, error')).toEqual(['cut_over', null, null]);
      await expectRows(upstream, 'SELECT * FROM busy.t', "(1, 'held')");
      await alter('busy', 'FINALIZE');
      await expectRows(upstream, 'SELECT * FROM busy.mails', "(1, 'held')");
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('two tables of one name in two schemas at once, with statistics and options', { timeout: 60_000 }, async () => {
      for (const schema of ['one', 'two']) {
        await upstream.query(`CREATE SCHEMA ${schema}; CREATE TABLE ${schema}.t (id int PRIMARY KEY, mail text UNIQUE, seen date, cur int, k1 int, found text) WITH (fillfactor = 80); CREATE STATISTICS ${schema}.s ON mail, seen FROM ${schema}.t;
          CREATE INDEX ON ${schema}.t (cur); INSERT INTO ${schema}.t VALUES (1, '${schema}', NULL, 1, 1, 'f')`);
        await client.query(
          `CREATE MIGRATION ${schema} MOVE COLUMNS (mail, seen) FROM ${schema}.t TO TABLE ${schema}.mails KEY (id AS cur) ABSENT WHEN NULL WITH (CUTOVER = MANUAL)`,
        );
      }
      for (const what of ['CUTOVER', 'REVERT', 'VERIFY', 'CUTOVER']) for (const schema of ['one', 'two']) await alter(schema, what);
      for (const schema of ['one', 'two']) {
        await client.query(`UPDATE ${schema}.t SET mail = mail || '!', found = 'g', cur = 2 WHERE found = 'f'`);
        await alter(schema, 'FINALIZE');
      }
      await expectRows(upstream, 'SELECT * FROM one.mails UNION ALL SELECT * FROM two.mails', "(1, 'one!', NULL::date), (1, 'two!', NULL)");
      await expectRows(upstream, 'SELECT * FROM one.t UNION ALL SELECT * FROM two.t', "(1, 2, 1, 'g'), (1, 2, 1, 'g')");
      expect((await factsOf(upstream, 'one')).filter((line) => /INDEX|STATISTICS/.test(line))).toEqual([
        expect.stringContaining('CREATE INDEX t_cur_idx ON one.t '),
        expect.stringContaining('CREATE STATISTICS one.mails_mail_seen_stat ON mail, seen FROM one.mails'),
        expect.stringContaining('CREATE UNIQUE INDEX mails_mail_key ON one.mails '),
        expect.stringContaining('CREATE UNIQUE INDEX mails_pkey ON one.mails '),
        expect.stringContaining('CREATE UNIQUE INDEX t_pkey ON one.t '),
      ]);
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('goes on when the upstream was restarted, before and after the cutover', { timeout: 90_000 }, async () => {
      await upstream.query(
        "CREATE SCHEMA again; CREATE TABLE again.t (id int PRIMARY KEY, mail text, note text); INSERT INTO again.t VALUES (1, 'm', 'n')",
      );
      await client.query(
        'CREATE MIGRATION again MOVE COLUMNS (mail) FROM again.t TO TABLE again.mails KEY (id) ABSENT WHEN NULL WITH (CUTOVER = MANUAL)',
      );
      const restart = async (): Promise<void> => {
        on = await on.restarted();
        ({ client, upstream, clerk } = on);
      };
      await restart();
      await upstream.query("INSERT INTO again.t VALUES (2, 'after a restart', 'n')");
      await clean('again');
      await alter('again', 'CUTOVER');
      await restart();
      await upstream.query("INSERT INTO again.t VALUES (3, 'after another', 'n'); UPDATE again.mails SET mail = 'new' WHERE id = 1");
      await clean('again');
      await alter('again', 'REVERT', 'VERIFY');
      await expectRows(upstream, 'SELECT * FROM again.t', "(1, 'new', 'n'), (2, 'after a restart', 'n'), (3, 'after another', 'n')");
      await alter('again', 'CANCEL');
      expect(await leftBehind(upstream)).toEqual([]);
    });
  });
}
