/** What others do to a table, and to tables around it, while it is being migrated. */
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { changesOf, factsOf, leftBehind, type MigrationStage, startMigrationStage } from './migrations-stage.ts';
import type { TestClient } from './stage.ts';

for (const version of [18, 15] as const) {
  describe(`meanwhile, on ${version}`, () => {
    let on: MigrationStage;
    let client: TestClient;
    let upstream: TestClient;

    beforeAll(async () => {
      on = await startMigrationStage(version);
      ({ client, upstream } = on);
    }, 180_000);
    afterAll(() => on?.stage.stop());

    const state: MigrationStage['state'] = (name, columns) => on.state(name, columns);
    const alter: MigrationStage['alter'] = (name, ...steps) => on.alter(name, ...steps);

    test('indexes and checks that were made or dropped come along, to the new table and back', { timeout: 60_000 }, async () => {
      await upstream.query(`CREATE SCHEMA made; CREATE TABLE made.t (id int PRIMARY KEY, n int NOT NULL, a text, b text, CONSTRAINT small CHECK (n < 1000));
        CREATE INDEX early ON made.t (b); CREATE UNIQUE INDEX unwanted ON made.t (a); INSERT INTO made.t SELECT i, i, 'a' || i, 'b' FROM generate_series(1, 100) i`);
      await client.query('CREATE MIGRATION made ALTER TABLE made.t ALTER COLUMN n TYPE bigint WITH (CUTOVER = MANUAL)');
      await upstream.query(`CREATE INDEX "Late ON x" ON made.t (lower(a), n DESC) WHERE b <> ''; CREATE UNIQUE INDEX late_unique ON made.t (id, b) INCLUDE (a);
        ALTER TABLE made.t ADD CONSTRAINT late_constraint UNIQUE (n), ADD CONSTRAINT late_check CHECK (b <> 'x'), DROP CONSTRAINT small; DROP INDEX made.unwanted`);
      await upstream.query("UPDATE made.t SET a = 'the same', n = n + 2000");
      const before = await factsOf(upstream, 'made');
      await alter('made', 'VERIFY', 'CUTOVER');
      expect(await state('made', 'phase, error')).toEqual(['cut_over', null]);
      const column = expect.stringContaining('column t.n ');
      expect(changesOf(before, await factsOf(upstream, 'made'))).toEqual({ gone: [column], come: [column] });
      await upstream.query(
        'DROP INDEX made.late_unique; CREATE INDEX later ON made.t (a, n); ALTER TABLE made.t DROP CONSTRAINT late_check',
      );
      const after = await factsOf(upstream, 'made');
      await alter('made', 'VERIFY', 'REVERT', 'VERIFY');
      expect(await state('made', 'phase, differences, repaired')).toEqual(['ready', '0', '0']);
      expect(changesOf(after, await factsOf(upstream, 'made'))).toEqual({ gone: [column], come: [column] });
      await alter('made', 'CUTOVER', 'FINALIZE');
      expect(changesOf(after, await factsOf(upstream, 'made'))).toEqual({ gone: [], come: [] });
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('an index on moved columns comes along; what spans them and others, or watches over the table, does not', {
      timeout: 60_000,
    }, async () => {
      await upstream.query(
        "CREATE SCHEMA moves; CREATE TABLE moves.t (id int PRIMARY KEY, mail text, n int); INSERT INTO moves.t VALUES (1, 'M', 1), (2, NULL, 2)",
      );
      await client.query(
        'CREATE MIGRATION moves MOVE COLUMNS (mail) FROM moves.t TO TABLE moves.mails KEY (id) ABSENT WHEN NULL WITH (CUTOVER = MANUAL)',
      );
      for (const [make, undo, error] of [
        ['CREATE INDEX torn ON moves.t (mail, n)', 'DROP INDEX moves.torn', /^index torn cannot go along/],
        [
          'ALTER TABLE moves.t ADD CONSTRAINT torn CHECK (n > 0 OR mail IS NULL)',
          'ALTER TABLE moves.t DROP CONSTRAINT torn',
          /^constraint torn/,
        ],
        [
          'CREATE FUNCTION moves.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; CREATE TRIGGER g AFTER UPDATE OF mail ON moves.t FOR EACH ROW EXECUTE FUNCTION moves.f()',
          'DROP TRIGGER g ON moves.t',
          /^trigger g/,
        ],
        ['ALTER TABLE moves.t ENABLE ROW LEVEL SECURITY', 'ALTER TABLE moves.t DISABLE ROW LEVEL SECURITY', /^row-level security/],
      ] as const) {
        await upstream.query(make);
        await alter('moves', 'CUTOVER');
        expect(await state('moves', 'phase, error')).toEqual(['ready', expect.stringMatching(error)]);
        await upstream.query(undo);
        await vi.waitFor(async () => expect(await state('moves', 'phase, request')).toEqual(['cut_over', null]), 10_000);
        await alter('moves', 'REVERT', 'VERIFY');
      }
      await upstream.query(
        'CREATE INDEX ON moves.t (lower(mail)); CREATE INDEX stays ON moves.t (n); ALTER TABLE moves.t ADD UNIQUE (mail)',
      );
      await alter('moves', 'CUTOVER', 'FINALIZE');
      const definitions = 'SELECT indexdef FROM pg_indexes WHERE schemaname = \'moves\' ORDER BY indexdef COLLATE "C"';
      expect((await upstream.rows(definitions)).flat()).toEqual([
        'CREATE INDEX mails_lower_idx ON moves.mails USING btree (lower(mail))',
        'CREATE INDEX stays ON moves.t USING btree (n)',
        'CREATE UNIQUE INDEX mails_mail_key ON moves.mails USING btree (mail)',
        'CREATE UNIQUE INDEX mails_pkey ON moves.mails USING btree (id)',
        'CREATE UNIQUE INDEX t_pkey ON moves.t USING btree (id)',
      ]);
    });

    test('an index that the new shape cannot have, and columns that change, keep it from cutting over', { timeout: 60_000 }, async () => {
      await upstream.query(
        "CREATE SCHEMA stops; CREATE TABLE stops.t (id int PRIMARY KEY, n text NOT NULL DEFAULT '7', b text); INSERT INTO stops.t VALUES (1, '1', 'x'), (2, '01', 'y')",
      );
      await client.query(
        'CREATE MIGRATION stops ALTER TABLE stops.t ALTER COLUMN n TYPE int USING n::int REVERT USING n::text WITH (CUTOVER = MANUAL)',
      );
      await client.query('SET millrace.wait = off');
      const stopped = async (statement: string, undo: string, error: RegExp, hint: RegExp): Promise<void> => {
        await upstream.query(statement);
        await alter('stops', 'CUTOVER');
        await vi.waitFor(async () => {
          const [message, how] = (await state('stops', 'error, hint')) as string[];
          expect(message).toMatch(error);
          expect(how).toMatch(hint);
        }, 10_000);
        expect(await state('stops', 'phase, request')).toEqual(['ready', 'cutover']);
        await upstream.query(undo);
        await vi.waitFor(async () => expect(await state('stops', 'phase, request, error')).toEqual(['cut_over', null, null]), 10_000);
        await alter('stops', 'REVERT');
        await vi.waitFor(async () => expect(await state('stops', 'phase, request')).toEqual(['ready', null]), 10_000);
      };
      await stopped(
        'CREATE UNIQUE INDEX once ON stops.t (n)',
        'DROP INDEX stops.once',
        /index "once" cannot be made on the table that takes the place: could not create unique index/,
        /Drop it; or ALTER MIGRATION stops CANCEL;/,
      );
      const again = /Undo that; or ALTER MIGRATION stops CANCEL; and create the migration again\./;
      await stopped(
        'ALTER TABLE stops.t ADD COLUMN c int',
        'ALTER TABLE stops.t DROP COLUMN c',
        /column "c" of "?stops"?\."?t"? was added/,
        again,
      );
      await stopped(
        "ALTER TABLE stops.t ALTER COLUMN b SET DEFAULT 'd'",
        'ALTER TABLE stops.t ALTER COLUMN b DROP DEFAULT',
        /column "b" of \S+ was altered/,
        again,
      );
      await client.query('SET millrace.wait = on');
      await upstream.query('ALTER TABLE stops.t ALTER COLUMN b SET NOT NULL');
      client.takeNotices();
      await alter('stops', 'CUTOVER');
      expect(client.takeNotices().join('\n')).toMatch(/has not cut over yet.*column "b" of \S+ was altered/s);
      await upstream.query('ALTER TABLE stops.t ALTER COLUMN b DROP NOT NULL');
      await vi.waitFor(async () => expect(await state('stops', 'phase, request')).toEqual(['cut_over', null]), 10_000);
      await alter('stops', 'FINALIZE');
    });

    test('TRUNCATE of one partition, which no stream tells of, is noticed before names change', async () => {
      await upstream.query(`CREATE SCHEMA emptied; CREATE TABLE emptied.t (id int PRIMARY KEY, n int, mail text) PARTITION BY RANGE (id);
        CREATE TABLE emptied.low PARTITION OF emptied.t FOR VALUES FROM (0) TO (100); CREATE TABLE emptied.high PARTITION OF emptied.t FOR VALUES FROM (100) TO (200);
        INSERT INTO emptied.t SELECT g, g, 'm' || g FROM generate_series(0, 199) g`);
      const counts = (n: string): Promise<unknown[][]> =>
        client.rows(`SELECT count(*)::int, count(*) FILTER (WHERE id < 100)::int, sum(${n})::int FROM emptied.t`);
      await client.query('CREATE MIGRATION emptied ALTER TABLE emptied.t ALTER COLUMN n TYPE bigint WITH (CUTOVER = MANUAL)');
      await upstream.query("TRUNCATE emptied.low; INSERT INTO emptied.t VALUES (7, 7, 'again')");
      await alter('emptied', 'CUTOVER');
      expect(await counts('n')).toEqual([[101, 1, 14957]]);
      await upstream.query("TRUNCATE emptied.high; INSERT INTO emptied.t VALUES (150, 1, 'again')");
      await alter('emptied', 'REVERT');
      expect(await counts('n')).toEqual([[2, 1, 8]]);
      await alter('emptied', 'CANCEL');
      await client.query(
        'CREATE MIGRATION emptied MOVE COLUMNS (mail) FROM emptied.t TO TABLE emptied.mails KEY (id) ABSENT WHEN NULL WITH (CUTOVER = MANUAL)',
      );
      await upstream.query('TRUNCATE emptied.low');
      await alter('emptied', 'CUTOVER');
      expect(await client.rows('SELECT id FROM emptied.mails')).toEqual([[150]]);
      await alter('emptied', 'FINALIZE');
      await client.query('DROP SCHEMA emptied CASCADE');
    });

    test('partitions of a table that gets another shape change places; one that is attached meanwhile stops it', {
      timeout: 90_000,
    }, async () => {
      await upstream.query(`CREATE ROLE guard; CREATE SCHEMA parts; CREATE TABLE parts.owners (id int PRIMARY KEY); INSERT INTO parts.owners VALUES (1);
        CREATE TABLE parts.t (region text, id int, owner int REFERENCES parts.owners, n int CHECK (n > 0), label text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
        CREATE TABLE parts.eu PARTITION OF parts.t FOR VALUES IN ('eu') WITH (fillfactor = 60);
        CREATE TABLE parts.us PARTITION OF parts.t FOR VALUES IN ('us') PARTITION BY RANGE (id);
        CREATE TABLE parts.us_1 PARTITION OF parts.us FOR VALUES FROM (1) TO (100); CREATE TABLE parts.us_2 PARTITION OF parts.us DEFAULT;
        CREATE TABLE parts.rest PARTITION OF parts.t DEFAULT; GRANT SELECT ON parts.us_1 TO guard; GRANT SELECT (label), UPDATE (label) ON parts.eu TO guard WITH GRANT OPTION; COMMENT ON TABLE parts.rest IS 'all others';
        CREATE INDEX by_n ON parts.t (n DESC); CREATE INDEX by_label ON parts.t (lower(label)) WHERE n > 5;
        CREATE TABLE parts.c (region text, id int, FOREIGN KEY (region, id) REFERENCES parts.t ON UPDATE CASCADE ON DELETE CASCADE);
        CREATE FUNCTION parts.mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.label := NEW.label || '!'; RETURN NEW; END $$;
        INSERT INTO parts.t SELECT r, i, 1, i, 'l ' || i FROM unnest('{eu,us,as}'::text[]) r, generate_series(90, 110) i; INSERT INTO parts.c SELECT region, id FROM parts.t;
        CREATE TRIGGER mark BEFORE INSERT ON parts.t FOR EACH ROW EXECUTE FUNCTION parts.mark()`);
      // What a foreign key is for one partition that it refers to does not say before 18 that it was validated.
      const facts = async (): Promise<string[]> =>
        (await factsOf(upstream, 'parts')).filter((line) => !/^constraint c_\w+_fkey\d/.test(line));
      const before = await facts();
      const part = 'ALTER TABLE parts.eu ADD CONSTRAINT own CHECK (n < 5000)';
      const create = 'CREATE MIGRATION parts ALTER TABLE parts.t ALTER COLUMN n TYPE bigint WITH (CUTOVER = MANUAL)';
      await upstream.query(part);
      expect(await client.failure(create)).toMatch(/0A000: constraint own of parts.eu is of a partition alone/);
      await upstream.query('ALTER TABLE parts.eu DROP CONSTRAINT own');
      await client.query(create);
      const work = async (n: number): Promise<void> => {
        await upstream.query(`INSERT INTO parts.t VALUES ('us', ${n}, 1, 7, 'x y'), ('xx', ${n}, NULL, 8, 'x y'); UPDATE parts.t SET region = 'eu', n = n + 1 WHERE region = 'us' AND id = ${n};
          INSERT INTO parts.c VALUES ('eu', ${n}); DELETE FROM parts.t WHERE region = 'as' AND id = 90 + ${n} % 10`);
      };
      await work(1001);
      await alter('parts', 'VERIFY', 'CUTOVER');
      expect(await state('parts', 'phase, differences, repaired, error')).toEqual(['cut_over', '0', '0', null]);
      await work(1002);
      await upstream.query("UPDATE parts_old.t SET n = n + 1 WHERE region = 'eu' AND id = 1002");
      const bigger = await facts();
      const ofN = expect.stringMatching(/^column (t|eu|us|us_1|us_2|rest)\.n /);
      const changed = changesOf(before, bigger);
      expect(changed).toEqual({ gone: Array.from({ length: 6 }, () => ofN), come: Array.from({ length: 6 }, () => ofN) });
      await alter('parts', 'VERIFY', 'REVERT', 'VERIFY');
      expect(await state('parts', 'phase, differences, repaired, error')).toEqual(['ready', '0', '0', null]);
      expect(changesOf(before, await facts())).toEqual({ gone: [], come: [] });
      await upstream.query(
        "CREATE TABLE parts.af PARTITION OF parts.t FOR VALUES IN ('af'); INSERT INTO parts.t VALUES ('af', 1, 1, 1, 'l')",
      );
      await alter('parts', 'CUTOVER');
      expect(await state('parts', 'phase, error, detail')).toEqual([
        'ready',
        'a partition of parts.t was attached after the migration began',
        'It is "af".',
      ]);
      await upstream.query('ALTER TABLE parts.t DETACH PARTITION parts.af; DROP TABLE parts.af');
      await vi.waitFor(async () => expect(await state('parts', 'phase, request')).toEqual(['cut_over', null]), 20_000);
      await work(1003);
      await alter('parts', 'VERIFY', 'FINALIZE');
      expect(changesOf(bigger, await facts())).toEqual({ gone: [], come: [] });
      await client.query(
        "CREATE MIGRATION split SPLIT COLUMN parts.t.label INTO (a text AS split_part(label, ' ', 1), b text AS split_part(label, ' ', 2)) DOWN (a || ' ' || b) WITH (CUTOVER = MANUAL)",
      );
      await upstream.query("INSERT INTO parts.t VALUES ('us', 2001, 1, 7, 'x z')");
      await alter('split', 'VERIFY', 'CUTOVER', 'REVERT', 'VERIFY');
      expect(changesOf(bigger, await facts())).toEqual({ gone: [], come: [] });
      await upstream.query('DROP TRIGGER mark ON parts.t');
      await alter('split', 'CUTOVER', 'FINALIZE');
      expect(await upstream.rows('SELECT a, b FROM parts.us_2 WHERE id = 2001')).toEqual([['x', 'z!']]);
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('foreign keys that were NOT VALID stay so, the others are validated', { timeout: 60_000 }, async () => {
      await upstream.query(`CREATE SCHEMA fkeys; CREATE TABLE fkeys.a (id int PRIMARY KEY); CREATE TABLE fkeys.t (id int PRIMARY KEY, a int CONSTRAINT checked REFERENCES fkeys.a, n int);
        CREATE TABLE fkeys.c (t int CONSTRAINT coming REFERENCES fkeys.t); INSERT INTO fkeys.a VALUES (1); INSERT INTO fkeys.t VALUES (1, 1, 1); INSERT INTO fkeys.c VALUES (1);
        INSERT INTO fkeys.t VALUES (2, NULL, 404); ALTER TABLE fkeys.t ADD CONSTRAINT unlooked FOREIGN KEY (n) REFERENCES fkeys.a NOT VALID`);
      const before = await factsOf(upstream, 'fkeys');
      await client.query('CREATE MIGRATION fkeys ALTER TABLE fkeys.t ALTER COLUMN n TYPE bigint WITH (CUTOVER = MANUAL)');
      const valid = async (): Promise<unknown> =>
        await upstream.rows(
          "SELECT conname, convalidated FROM pg_constraint WHERE contype = 'f' AND connamespace = 'fkeys'::regnamespace ORDER BY 1",
        );
      const wanted = [
        ['checked', true],
        ['coming', true],
        ['unlooked', false],
      ];
      for (const step of ['CUTOVER', 'REVERT', 'CUTOVER']) {
        await alter('fkeys', step);
        await vi.waitFor(async () => expect(await valid()).toEqual(wanted), 10_000);
      }
      await alter('fkeys', 'REVERT', 'CANCEL');
      await vi.waitFor(async () => expect(changesOf(before, await factsOf(upstream, 'fkeys'))).toEqual({ gone: [], come: [] }), 10_000);
    });

    test('who holds a table at the other end of a foreign key is waited for, and named', { timeout: 60_000 }, async () => {
      await upstream.query(`CREATE SCHEMA ends; CREATE TABLE ends.a (id int PRIMARY KEY); CREATE TABLE ends.t (id int PRIMARY KEY, a int REFERENCES ends.a, n int);
        CREATE TABLE ends.c (t int REFERENCES ends.t)`);
      const create = 'CREATE MIGRATION ends ALTER TABLE ends.t ALTER COLUMN n TYPE bigint WITH (CUTOVER = MANUAL)';
      expect((await client.rows(`EXPLAIN ${create}`)).flat().join('\n')).toMatch(
        /ACCESS EXCLUSIVE on the table, its views, ends\.a and ends\.c/,
      );
      await client.query(create);
      const holder = await on.stage.direct(on.stage.upstream);
      const [pid] = (await holder.rows('SELECT pg_backend_pid()'))[0] ?? [];
      for (const table of ['ends.a', 'ends.c']) {
        await holder.query(`BEGIN; SELECT FROM ${table}`);
        await client.query('SET millrace.wait = off; ALTER MIGRATION ends CUTOVER; SET millrace.wait = on');
        await vi.waitFor(async () => {
          expect(await state('ends', "error, blocked_by -> 0 -> 'pid'")).toEqual(['the locks were not to be had', pid]);
        }, 10_000);
        await holder.query('COMMIT');
        await vi.waitFor(async () => expect(await state('ends', 'phase, request')).toEqual(['cut_over', null]), 10_000);
        await alter('ends', 'REVERT', 'VERIFY');
      }
      await alter('ends', 'CANCEL');
    });

    test('an identity column GENERATED ALWAYS is not updated through a view either', { timeout: 60_000 }, async () => {
      await upstream.query(
        `CREATE SCHEMA ids; CREATE TABLE ids.t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, m text); INSERT INTO ids.t (n, m) VALUES (1, 'm')`,
      );
      const message = /428C9: column "id" can only be updated to DEFAULT/;
      expect(await upstream.failure('UPDATE ids.t SET id = 5')).toMatch(message);
      await client.query('CREATE MIGRATION ids ALTER TABLE ids.t ALTER COLUMN n TYPE bigint WITH (CUTOVER = MANUAL)');
      expect(await upstream.failure('UPDATE ids_new.t SET id = 5')).toMatch(message);
      expect((await upstream.query('UPDATE ids_new.t SET id = id, n = 2')).rowCount).toBe(1);
      await alter('ids', 'CUTOVER');
      expect(await upstream.failure('UPDATE ids_old.t SET id = 5')).toMatch(message);
      await alter('ids', 'FINALIZE');
      await client.query('CREATE MIGRATION ids MOVE COLUMNS (m) FROM ids.t TO TABLE ids.ms KEY (id) ABSENT WHEN NULL');
      expect(await upstream.failure('UPDATE ids.t SET id = 5')).toMatch(message);
      await alter('ids', 'FINALIZE');
    });

    test('unique values of thousands of rows change places in one transaction', { timeout: 60_000 }, async () => {
      await upstream.query(
        'CREATE SCHEMA swap; CREATE TABLE swap.t (id int PRIMARY KEY, u int UNIQUE, n int); INSERT INTO swap.t SELECT i, i, i FROM generate_series(1, 5000) i',
      );
      await client.query('CREATE MIGRATION swap ALTER TABLE swap.t ALTER COLUMN n TYPE bigint WITH (CUTOVER = MANUAL)');
      const swap = 'BEGIN; UPDATE swap.t SET u = u + 10000; UPDATE swap.t SET u = 15001 - u; COMMIT';
      await upstream.query(swap);
      await alter('swap', 'VERIFY', 'CUTOVER');
      await upstream.query(swap);
      await alter('swap', 'VERIFY');
      expect(await state('swap', 'phase, differences, repaired, error')).toEqual(['cut_over', '0', '0', null]);
      await vi.waitFor(async () => expect(await state('swap', 'keys_applied >= 10000')).toEqual([true]), 10_000);
      await alter('swap', 'FINALIZE');
      await client.query('CREATE MIGRATION swap MOVE COLUMNS (u) FROM swap.t TO TABLE swap.us KEY (id) ABSENT WHEN NULL');
      await upstream.query(swap);
      await alter('swap', 'VERIFY');
      expect(await state('swap', 'phase, differences, repaired, error')).toEqual(['cut_over', '0', '0', null]);
      await alter('swap', 'FINALIZE');
    });
  });
}
