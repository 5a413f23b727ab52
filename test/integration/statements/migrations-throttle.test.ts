/** Copying gives way: to standbys that are behind, and to slots that the WAL it writes would cost. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { startStandby, type TestStandby } from '../../support/migration-standby.ts';
import { type MigrationStage, startMigrationStage } from './migrations-stage.ts';
import type { TestClient } from './stage.ts';

const patiently = { timeout: 30_000, interval: 20 };

for (const version of [18, 15] as const) {
  describe(`copying gives way, on ${version}`, () => {
    let on: MigrationStage;
    let client: TestClient;
    let upstream: TestClient;
    let state: MigrationStage['state'];
    let standby: TestStandby | undefined;
    beforeAll(async () => {
      on = await startMigrationStage(version);
      ({ client, upstream, state } = on);
      // Copied in a longer time than a standby may be behind, and in a shorter one.
      for (const [table, rows] of Object.entries({ many: 200_000, fewer: 40_000 }))
        await upstream.query(
          `CREATE TABLE ${table} (id int PRIMARY KEY, mail text); INSERT INTO ${table} SELECT i, repeat('m', 100) || i FROM generate_series(1, ${rows}) i; ANALYZE ${table}`,
        );
    }, 180_000);
    afterAll(async () => {
      await standby?.stop();
      await on?.stage.stop();
    });

    const begin = (options: string, table = 'many'): Promise<unknown> =>
      client.query(`SET millrace.wait = off; CREATE MIGRATION gives MOVE COLUMNS (mail) FROM ${table} TO TABLE mails KEY (id) ABSENT WHEN NULL
        WITH (CUTOVER = MANUAL, CHUNK '64kB'${options}); SET millrace.wait = on`);
    /** Rests for this reason, and goes on resting: no row comes while it does. */
    const rests = async (reason: RegExp): Promise<void> => {
      await vi.waitFor(async () => expect(await state('gives', 'throttled_by')).toEqual([expect.stringMatching(reason)]), patiently);
      const before = await state('gives', 'phase, rows_copied');
      expect(before).toEqual(['copying', expect.anything()]);
      await sleep(1_000);
      expect(await state('gives', 'phase, rows_copied')).toEqual(before);
      expect(await state('gives', 'throttled_by')).toEqual([expect.stringMatching(reason)]);
    };
    const goesOn = async (): Promise<void> => {
      await vi.waitFor(
        async () => expect(await state('gives', 'phase, throttled_by, differences')).toEqual(['ready', null, '0']),
        patiently,
      );
      await client.query('ALTER MIGRATION gives CANCEL');
    };

    test('to a standby that replays late, until it has caught up', { timeout: 120_000 }, async () => {
      standby = await startStandby(on.stage.upstream, 'late_standby');
      await vi.waitFor(
        async () =>
          expect(await upstream.rows("SELECT state FROM pg_stat_replication WHERE application_name = 'late_standby'")).toEqual([
            ['streaming'],
          ]),
        patiently,
      );
      await standby.query('SELECT pg_wal_replay_pause()');
      await begin(", MAX LAG '500ms'");
      await rests(/^standby "late_standby" is \d+ ms behind$/);
      await standby.query('SELECT pg_wal_replay_resume()');
      await goesOn();
    });

    test('to a standby that says nothing any more', { timeout: 120_000 }, async () => {
      const [[sender]] = (await upstream.rows("SELECT pid FROM pg_stat_replication WHERE application_name = 'late_standby'")) as [[number]];
      // As if the network had swallowed the standby's answers.
      process.kill(sender, 'SIGSTOP');
      try {
        await begin(", MAX LAG '500ms'");
        await rests(/^standby "late_standby" is \d+ ms behind$/);
      } finally {
        process.kill(sender, 'SIGCONT');
      }
      await goesOn();
      await standby?.stop();
      standby = undefined;
    });

    test('to a replication slot that would be lost', { timeout: 120_000 }, async () => {
      // Not within the transaction of a text of several statements.
      await upstream.query("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'");
      // It begins at the last checkpoint.
      await upstream.query('CHECKPOINT');
      await upstream.query("SELECT pg_reload_conf(), pg_create_physical_replication_slot('absent', true)");
      // Of the standby that is away.
      await upstream.query("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000)) FROM generate_series(1, 40)");
      await begin('', 'fewer');
      await rests(/^replication slot "absent" would be lost after \d+ more bytes of WAL$/);
      expect(await upstream.rows("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'absent'")).not.toEqual([['lost']]);
      await upstream.query("SELECT pg_drop_replication_slot('absent')");
      await goesOn();
    });
  });
}
