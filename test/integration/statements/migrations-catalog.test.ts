/**
 * What CREATE and ALTER MIGRATION write, and the functions that do the same. Migrations live in transactions that are rolled back where their phase is
 * set by hand, so that no engine sees them.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Stage, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;

const move = 'MOVE COLUMNS (email) FROM public.users TO TABLE public.emails KEY (id AS user_id) ABSENT WHEN NULL';

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  await client.query(`
    CREATE ROLE alice LOGIN PASSWORD 'secret';
    CREATE ROLE bob LOGIN PASSWORD 'secret';
    GRANT CREATE ON DATABASE postgres TO alice;
    GRANT CREATE ON SCHEMA public TO alice;
    CREATE TABLE public.users (id int PRIMARY KEY, name text NOT NULL, email text);
    ALTER TABLE public.users OWNER TO alice;
    SET millrace.wait = off;
  `);
}, 180_000);
afterAll(() => stage?.stop());

/** A migration in the given phase, in a transaction that is rolled back behind the test. */
async function inPhase(phase: string, work: () => Promise<void>, as = client): Promise<void> {
  await as.query('BEGIN');
  try {
    await as.query(`CREATE MIGRATION m ${move} WITH (CUTOVER MANUAL)`);
    await as.query(`RESET ROLE; UPDATE millrace.migration SET phase = '${phase}' WHERE name = 'm'`);
    await work();
  } finally {
    await as.query('ROLLBACK');
  }
}

const row = async (columns: string): Promise<unknown[] | undefined> =>
  (await client.rows(`SELECT ${columns} FROM millrace.migrations WHERE name = 'm'`))[0];

/** What a statement is refused with, in a transaction that goes on. */
async function refusal(sql: string): Promise<string> {
  await client.query('SAVEPOINT before');
  const said = await client.failure(sql);
  await client.query('ROLLBACK TO SAVEPOINT before');
  return said;
}

describe('CREATE MIGRATION', () => {
  test('enters what is to be done, for the owner of the table', async () => {
    await inPhase('creating', async () => {
      expect(await row('kind, source, target, owner, status, request, old_version, new_version, statement')).toEqual([
        ...['move', 'public.users', expect.stringMatching(/^millrace_data\.m\d+$/), 'alice', 'creating', null, 'm_old', 'm_new'],
        `CREATE MIGRATION m ${move} WITH (CUTOVER MANUAL)`,
      ]);
      const [[source, definition, options] = []] = await client.rows(
        "SELECT source, definition, options FROM millrace.migration WHERE name = 'm'",
      );
      expect(source).toMatchObject({ schema: 'public', name: 'users', partitioned: false, owner: { name: 'alice' }, key: ['id'] });
      expect(source).toMatchObject({
        columns: [
          { attnum: 1, name: 'id', type: 'integer', notNull: true, identity: null, generated: null, defaultText: null },
          { attnum: 2, name: 'name', type: 'text', notNull: true },
          { attnum: 3, name: 'email', type: 'text', notNull: false },
        ],
      });
      expect(definition).toEqual({
        kind: 'move',
        columns: ['email'],
        target: { schema: 'public', name: 'emails' },
        key: [{ column: 'id', as: 'user_id' }],
      });
      expect(options).toEqual({
        ...{ cutover: 'manual', lockTimeoutMs: 100, maxHoldMs: 250, reverseWindowMs: null, maxLagMs: 2000, chunkBytes: 8_388_608 },
        ...{ newVersion: 'm_new', oldVersion: 'm_old' },
      });
    });
    expect(await client.rows("SELECT name FROM millrace.migrations WHERE name = 'm'")).toEqual([]);
  });

  test('writes types and expressions as they mean the same under every search_path', async () => {
    await client.query('BEGIN');
    await client.query(`CREATE SCHEMA other; CREATE TYPE other.mood AS ENUM ('sad'); SET LOCAL search_path = other, public`);
    await client.query('CREATE TABLE things (id int PRIMARY KEY, n int, m mood)');
    await client.query("CREATE MIGRATION m ALTER TABLE things ALTER n TYPE varchar(9) USING n || '!' REVERT USING rtrim(n, '!')::int4");
    expect((await client.rows("SELECT definition FROM millrace.migration WHERE name = 'm'"))[0]?.[0]).toEqual({
      kind: 'alter',
      columns: [{ column: 'n', type: 'character varying(9)', up: "(n || '!'::text)", down: "(rtrim((n)::text, '!'::text))::integer" }],
    });
    expect((await client.rows("SELECT source -> 'columns' -> 2 ->> 'type' FROM millrace.migration WHERE name = 'm'"))[0]).toEqual([
      'other.mood',
    ]);
    await client.query('ROLLBACK');
  });

  test('IF NOT EXISTS, and a second one of the same name or table', async () => {
    await inPhase('copying', async () => {
      client.takeNotices();
      await client.query(`CREATE MIGRATION IF NOT EXISTS m ${move}`);
      expect(client.takeNotices()).toEqual(['migration "m" already exists, skipping']);
      expect(await refusal(`CREATE MIGRATION m ${move}`)).toBe('ERROR 42710 at <m>: migration "m" already exists');
      expect(await refusal(`CREATE MIGRATION n ${move}`)).toMatch(
        /^ERROR 55006: migration "m" of table public.users is under way\nHINT: Finish it/,
      );
    });
  });

  test('of a table of others', async () => {
    const bob = await stage.connect('bob');
    expect(await bob.failure(`CREATE MIGRATION m ${move}`)).toMatch(
      /^ERROR 42501: must be owner of table public.users\nDETAIL: It belongs to role "alice"/,
    );
  });

  test('not in a read-only transaction', async () => {
    await client.query('BEGIN READ ONLY');
    expect(await client.failure(`CREATE MIGRATION m ${move}`)).toBe(
      'ERROR 25006: cannot execute CREATE MIGRATION in a read-only transaction',
    );
    await client.query('ROLLBACK');
  });

  test('tells what is worth a warning', async () => {
    await client.query('BEGIN; CREATE PUBLICATION p FOR TABLE public.users');
    client.takeNotices();
    await client.query(`CREATE MIGRATION m ${move}`);
    expect(client.takeNotices()).toEqual([expect.stringMatching(/^publication "p" contains the table\n/)]);
    await client.query('ROLLBACK');
  });
});

describe('SHOW', () => {
  test('MIGRATIONS and CREATE MIGRATION', async () => {
    expect(await client.failure('SHOW CREATE MIGRATION m')).toBe(
      'ERROR 42704 at <m>: migration "m" does not exist\nHINT: SHOW MIGRATIONS; lists what there is.',
    );
    await inPhase('copying', async () => {
      const shown = await client.query("SHOW MIGRATIONS WHERE status = 'copying' AND name LIKE 'm'");
      expect(shown.rows).toEqual([
        expect.objectContaining({ name: 'm', kind: 'move', table: 'public.users', status: 'copying', rows_copied: '0', error: null }),
      ]);
      expect(await client.rows("SHOW MIGRATIONS LIKE 'x%'")).toEqual([]);
      expect(await client.rows('SHOW CREATE MIGRATION m')).toEqual([['m', `CREATE MIGRATION m ${move} WITH (CUTOVER MANUAL)`]]);
    });
  });
});

describe('ALTER MIGRATION', () => {
  const possible: readonly [string, readonly string[]][] = [
    ['creating', ['pause', 'resume', 'cancel']],
    ['copying', ['pause', 'resume', 'cancel']],
    ['verifying', ['pause', 'resume', 'verify', 'cancel']],
    ['ready', ['pause', 'resume', 'verify', 'cutover', 'cancel']],
    ['cut_over', ['pause', 'resume', 'verify', 'revert', 'finalize']],
    ['finished', []],
    ['cancelled', []],
  ];
  test.each(possible)('in phase %s these can be asked for: %j', async (phase, allowed) => {
    await inPhase(phase, async () => {
      for (const action of ['pause', 'resume', 'verify', 'cutover', 'revert', 'finalize', 'cancel']) {
        for (const sql of [`ALTER MIGRATION m ${action}`, `SELECT millrace.${action}_migration('m')`]) {
          await client.query('SAVEPOINT before');
          const outcome = await client.query(sql).then(
            () => 'done',
            (error: Error & { code?: string }) => error.code,
          );
          if (outcome === 'done' && action !== 'resume') {
            expect(await row('request, status')).toEqual(action === 'pause' ? [null, 'paused'] : [action, phase]);
          }
          await client.query('ROLLBACK TO SAVEPOINT before');
          expect(`${sql}: ${outcome}`).toBe(`${sql}: ${allowed.includes(action) ? 'done' : '55000'}`);
        }
      }
    });
  });

  test('says why not, and what can be asked for', async () => {
    await inPhase('copying', async () => {
      await client.query('UPDATE millrace.migration_progress SET rows_copied = 12, rows_total = 100');
      expect(await refusal('ALTER MIGRATION m CUTOVER')).toBe(
        [
          'ERROR 55000: cannot cutover migration "m" now',
          'DETAIL: It is copying: 12 of about 100 rows.',
          'HINT: Wait until it is ready: SHOW MIGRATIONS; or type ALTER MIGRATION m CANCEL;',
        ].join('\n'),
      );
      expect(await refusal("SELECT millrace.cutover_migration('m')")).toContain('ERROR 55000: cannot cutover migration "m" now');
    });
    await inPhase('cut_over', async () => {
      expect(await refusal('ALTER MIGRATION m CANCEL')).toContain('HINT: ALTER MIGRATION m REVERT; brings the old shape back');
      await client.query('ALTER MIGRATION m VERIFY');
      expect(await refusal('ALTER MIGRATION m REVERT')).toMatch(
        /^ERROR 55006: .*\nDETAIL: It has still to carry out another request: VERIFY\./,
      );
    });
    await inPhase('ready', async () => {
      await client.query('ALTER MIGRATION m PAUSE');
      expect(await refusal('ALTER MIGRATION m CUTOVER')).toContain('DETAIL: It is paused.\nHINT: ALTER MIGRATION m RESUME;');
      await client.query('ALTER MIGRATION m RESUME; ALTER MIGRATION m CUTOVER');
      expect(await row('request')).toEqual(['cutover']);
    });
  });

  test('of none, and by others', async () => {
    expect(await client.failure('ALTER MIGRATION none PAUSE')).toContain('ERROR 42704 at <none>: migration "none" does not exist');
    client.takeNotices();
    await client.query('ALTER MIGRATION IF EXISTS none PAUSE');
    expect(client.takeNotices()).toEqual(['migration "none" does not exist, skipping']);
    expect(await client.failure("SELECT millrace.pause_migration('none')")).toContain('ERROR 42704: migration "none" does not exist');
    await inPhase('ready', async () => {
      await client.query('SET ROLE bob');
      expect(await refusal('ALTER MIGRATION m CUTOVER')).toContain('ERROR 42501: must be owner of migration m');
      expect(await refusal("SELECT millrace.cutover_migration('m')")).toContain('ERROR 42501: must be owner of migration m');
      expect(await refusal("UPDATE millrace.own_migration SET phase = 'cut_over'")).toContain('permission denied');
      expect((await client.query("UPDATE millrace.own_migration SET request = 'cutover'")).rowCount).toBe(0);
      await client.query('SET ROLE alice');
      await client.query("SELECT millrace.cutover_migration('m')");
      await client.query('RESET ROLE');
      expect(await row('request')).toEqual(['cutover']);
    });
  });

  test('SET changes what can change later', async () => {
    await inPhase('cut_over', async () => {
      await client.query("UPDATE millrace.migration SET cut_over_at = '2026-01-01 00:00+00'");
      await client.query("ALTER MIGRATION m SET (CUTOVER AUTO, MAX LAG = '5s', CHUNK '1MB', REVERSE WINDOW '1h')");
      expect(
        (await client.rows("SELECT options, window_ends_at::text::timestamptz = '2026-01-01 01:00+00' FROM millrace.migration"))[0],
      ).toEqual([
        expect.objectContaining({ cutover: 'auto', maxLagMs: 5000, chunkBytes: 1_048_576, reverseWindowMs: 3_600_000, lockTimeoutMs: 100 }),
        true,
      ]);
      await client.query('ALTER MIGRATION m SET (REVERSE WINDOW NONE)');
      expect(await row('window_ends_at')).toEqual([null]);
      expect(await refusal('ALTER MIGRATION m SET (NEW VERSION v2)')).toContain(
        'ERROR 22023 at <NEW>: NEW VERSION of a migration cannot be changed',
      );
      expect(await refusal("ALTER MIGRATION m SET (MAX LAG 'soon')")).toContain('invalid input syntax for type interval');
    });
  });

  test('RESUME begins with a clean sheet', async () => {
    await inPhase('copying', async () => {
      await client.query(`UPDATE millrace.migration_progress SET error = '{"message": "the disk is full"}'`);
      expect(await row('error')).toEqual(['the disk is full']);
      await client.query('ALTER MIGRATION m RESUME');
      expect(await row('error')).toEqual([null]);
    });
  });

  test('FINALIZE names what hangs on the old shape', async () => {
    await inPhase('cut_over', async () => {
      await client.query('CREATE TABLE m_old.x (a int); CREATE VIEW public.hangs AS SELECT * FROM m_old.x');
      client.takeNotices();
      await client.query('ALTER MIGRATION m FINALIZE');
      expect(client.takeNotices()).toEqual(['migration "m" cannot be finished while other objects depend on the old shape\npublic.hangs']);
    });
  });
});

describe('a migration that begins', () => {
  beforeEach(() => client.query('SET millrace.wait = off'));
  test('holds no lock on the table behind the commit', async () => {
    await client.query(`CREATE MIGRATION begins ${move} WITH (CUTOVER MANUAL)`);
    const other = await stage.direct(stage.upstream);
    expect((await other.rows("SELECT count(*)::int FROM millrace.migrations WHERE name = 'begins'"))[0]).toEqual([1]);
    expect(
      await other.rows(
        "SELECT count(*)::int FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = 'public.users'::regclass AND a.application_name <> 'millrace'",
      ),
    ).toEqual([[0]]);
  });
});
