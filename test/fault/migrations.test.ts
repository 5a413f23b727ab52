/**
 * A migration beside writers: old and new applications, through Millrace and straight to the upstream, before, during and after cutover and revert,
 * while Millrace is killed. Nothing is lost, nothing is there twice, and nobody sees an error that an undisturbed run would not have.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { startWitness, type Witness, witnessQuery, witnessTables } from '../support/witness.ts';

const createMigration = `CREATE MIGRATION move_mail
  MOVE COLUMNS (email, verified) FROM public.people TO TABLE public.people_mail KEY (id AS person_id) ABSENT WHEN NULL
  WITH (CUTOVER = MANUAL, NEW VERSION = people_v2, OLD VERSION = people_v1, CHUNK '64kB')`;

/** How long writers write between two steps. */
const stretchMs = Number(process.env['MILLRACE_WITNESS_MS'] ?? 1500);

let upstream: TestPostgres;
let millrace: TestMillrace;
let direct: pg.Client;

beforeEach(async () => {
  upstream = await startPostgres({ settings: { wal_level: 'logical', max_prepared_transactions: '50', max_connections: '80' } });
  millrace = await startMillrace({ upstream: upstream.address });
  direct = new pg.Client({ connectionString: upstream.url });
  await direct.connect();
}, 120_000);

afterEach(async () => {
  await direct?.end();
  await millrace?.stop();
  await upstream?.stop();
});

async function say(sql: string): Promise<string[]> {
  const client = new pg.Client({ connectionString: millrace.url() });
  const notices: string[] = [];
  client.on('notice', (notice) => notices.push(notice.message ?? ''));
  await client.connect();
  try {
    await client.query(sql);
    return notices;
  } finally {
    await client.end();
  }
}

async function state(): Promise<Record<string, unknown>> {
  const { rows } = await direct.query("SELECT * FROM millrace.migrations WHERE name = 'move_mail' ORDER BY id DESC LIMIT 1");
  return rows[0] ?? {};
}

async function until(phase: string): Promise<void> {
  for (let i = 0; i < 4000; i++) {
    const now = await state();
    if (now['phase'] === phase && now['request'] === null) return;
    await sleep(20);
  }
  const activity = await direct.query(
    'SELECT pid, application_name, state, wait_event_type, wait_event, pg_blocking_pids(pid) AS blocked, left(query, 100) AS query, now() - xact_start AS open FROM pg_stat_activity WHERE datname = current_database()',
  );
  throw new Error(`never ${phase}: ${JSON.stringify([await state(), ...activity.rows], null, 1)}\n${millrace.log().slice(-20000)}`);
}

/** Everybody stops, and what is there is compared with the ledger; also what follows with what is followed. */
async function check(witnesses: readonly Witness[], people: string): Promise<void> {
  await Promise.all(witnesses.map((witness) => witness.pause()));
  const wrong = (await direct.query(witnessQuery(people))).rows;
  expect(wrong).toEqual([]);
  expect(witnesses.flatMap((witness) => witness.errors)).toEqual([]);
  const { phase } = await state();
  if (phase === 'ready' || phase === 'cut_over') {
    await say('ALTER MIGRATION move_mail VERIFY');
    expect(
      await state(),
      millrace
        .log()
        .split('\n')
        .filter((line) => line.includes('as they should be'))
        .join('\n'),
    ).toMatchObject({ differences: '0', repaired: '0' });
  }
  for (const witness of witnesses) witness.resume();
}

const start = (kinds: readonly (readonly ['old' | 'new', 'millrace' | 'direct'])[]): Witness[] =>
  kinds.map(([shape, path], number) =>
    startWitness({ url: path === 'millrace' ? millrace.url() : upstream.url, shape, number, newVersion: 'people_v2', prepares: true }),
  );

describe('moving columns', () => {
  test('beside writers of every kind, from its creation to its end', { timeout: 240_000 }, async () => {
    await direct.query(witnessTables);
    const old = start([
      ['old', 'millrace'],
      ['old', 'direct'],
      ['old', 'millrace'],
    ]);
    await sleep(stretchMs);
    await say(createMigration);
    await until('ready');
    const fresh = [3, 4, 5].map((number) =>
      startWitness({ url: number === 4 ? upstream.url : millrace.url(), shape: 'new', number, newVersion: 'people_v2', prepares: true }),
    );
    const all = [...old, ...fresh];
    try {
      await sleep(stretchMs);
      await check(all, 'public.people');
      for (const [request, phase] of [
        ['CUTOVER', 'cut_over'],
        ['REVERT', 'ready'],
        ['CUTOVER', 'cut_over'],
      ] as const) {
        await say(`ALTER MIGRATION move_mail ${request}`);
        await until(phase);
        await sleep(stretchMs);
        await check(all, 'public.people');
      }
      // Old applications have left.
      await Promise.all(old.map((witness) => witness.stop()));
      await say('ALTER MIGRATION move_mail FINALIZE');
      await until('finished');
      await sleep(stretchMs / 2);
      await check(fresh, '(SELECT p.*, m.email, m.verified FROM public.people p LEFT JOIN public.people_mail m ON m.person_id = p.id) x');
      expect(all.every((witness) => witness.committed > 20)).toBe(true);
    } finally {
      await Promise.all(all.map((witness) => witness.stop()));
    }
  });

  test('with kills in every phase', { timeout: 240_000 }, async () => {
    await direct.query(witnessTables);
    const old = start([
      ['old', 'direct'],
      ['old', 'millrace'],
      ['old', 'direct'],
    ]);
    await sleep(stretchMs);
    await say(`SET millrace.wait = off; ${createMigration}`);
    let going = true;
    const killer = (async () => {
      while (going) {
        await millrace.waitReady().catch(() => undefined);
        await sleep(300 + Math.random() * 3000);
        for (const pid of millrace.enginePids()) {
          try {
            process.kill(pid, 'SIGKILL');
          } catch {}
        }
      }
    })();
    const all = [...old, startWitness({ url: upstream.url, shape: 'new', number: 3, newVersion: 'people_v2' })];
    try {
      await until('ready');
      for (const [request, phase] of [
        ['CUTOVER', 'cut_over'],
        ['REVERT', 'ready'],
        ['CUTOVER', 'cut_over'],
        ['REVERT', 'ready'],
      ] as const) {
        await sleep(stretchMs);
        await say(`SET millrace.wait = off; ALTER MIGRATION move_mail ${request}`);
        await until(phase);
      }
      going = false;
      await killer;
      await millrace.waitReady();
      await check(all, 'public.people');
      await say('ALTER MIGRATION move_mail CANCEL');
      await until('cancelled');
      await check(old, 'public.people');
      expect((await direct.query("SELECT FROM pg_replication_slots WHERE slot_name LIKE 'millrace_migration%'")).rowCount).toBe(0);
    } finally {
      going = false;
      await Promise.all(all.map((witness) => witness.stop()));
    }
  });
});
