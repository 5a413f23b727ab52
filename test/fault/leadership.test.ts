/**
 * Two engines on one database: one leads, and when it is gone, hangs or is cut off the other takes over within seconds; no change is lost or made twice.
 * What a takeover takes is printed, from the fault to a row written after it being visible; the tests only limit how long they wait.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bankDifferences, bankProblems, bankSchema, bankStatements, startBankLoad } from '../support/bank.ts';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, testKey, texts } from '../support/engine.ts';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { startRelay } from '../support/relay.ts';

let origin: TestPostgres;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let leader: TestEngine;
let follower: TestEngine;

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({});
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(`${bankSchema}; CREATE PUBLICATION p FOR ALL TABLES; CREATE TABLE beat (n integer PRIMARY KEY)`);
  extended = await extendedClient(upstream.address);
  const [connection, ...statements] = bankStatements(origin);
  await extended.run(connection ?? '');
  leader = startEngine(upstream.address);
  for (const statement of statements) await extended.run(statement);
  await extended.run('CREATE TABLE live.beat FROM SOURCE bank (REFERENCE public.beat)');
}, 120_000);

afterAll(async () => {
  await leader?.stop();
  await follower?.stop();
  await extended?.end();
  await admin?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

/** Backends of engines: all, and those that hold the leader's lock. */
async function engines(): Promise<{ all: number; leading: string[] }> {
  const all = await texts(extended.client, "SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace epochs'");
  const leading = await texts(
    extended.client,
    "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'millrace epochs'",
  );
  return { all: all.length, leading: leading.map((row) => row[0] ?? '') };
}

/** How long until a row written now is seen, in ms. */
async function beat(n: number): Promise<number> {
  const begun = performance.now();
  await admin.query('INSERT INTO beat VALUES ($1)', [n]);
  while ((await texts(extended.client, `SELECT n FROM live.beat WHERE n = ${n}`)).length === 0) {
    if (performance.now() - begun > 30_000) throw new Error('no engine has taken over');
    await sleep(10);
  }
  return performance.now() - begun;
}

const told = (fault: string, ms: readonly number[]): void =>
  console.log(`leader ${fault}: a row was visible after ${ms.map((one) => `${(one / 1000).toFixed(1)} s`).join(', ')}`);

/** Both are gone, with their backends: one that is amid a statement holds the lock until its end, and would pass for the leader that is started next. */
async function stopBoth(): Promise<void> {
  await Promise.all([leader.stop(), follower.stop()]);
  await expect.poll(async () => (await engines()).all, { timeout: 20_000 }).toBe(0);
}

/** A second engine that waits behind the one that leads. */
async function startFollower(): Promise<void> {
  await expect.poll(async () => (await engines()).all, { timeout: 20_000 }).toBe(1);
  follower = startEngine(upstream.address);
  await expect.poll(async () => (await engines()).all, { timeout: 20_000 }).toBe(2);
  await sleep(700);
  expect((await engines()).leading).toHaveLength(1);
}

/** With no writes going on. */
async function allThere(): Promise<void> {
  await expect.poll(() => bankDifferences(extended.client, admin), { timeout: 30_000, interval: 200 }).toEqual([]);
  expect(await bankProblems(extended.client)).toEqual([]);
}

test('one of two engines leads, the other takes over', async () => {
  const load = startBankLoad(origin, { rate: 300 });
  const takeovers: number[] = [];
  for (let round = 0; round < 4; round++) {
    await startFollower();
    await leader.stop();
    takeovers.push(await beat(round));
    expect((await engines()).leading).toHaveLength(1);
    expect(await bankProblems(extended.client)).toEqual([]);
    leader = follower;
  }
  told('killed', takeovers);

  // The leader's session is ended under it: with the lock gone it may not go on, whoever leads then.
  await startFollower();
  const [before] = (await engines()).leading;
  await extended.client.query('SELECT pg_terminate_backend($1)', [before]);
  told('session ended', [await beat(100)]);
  const { leading } = await engines();
  expect(leading).toHaveLength(1);
  expect(leading[0]).not.toBe(before);

  await load.stop();
  await allThere();
}, 120_000);

// Where it is stopped: anywhere, before the commit of an open epoch, after a commit that it has not heard of.
test.each([
  ['', 200],
  ['large.last-applied', 300],
  ['steps.commit-sent', 500],
])(
  'a leader that hangs (%s) is replaced, and what it tries afterwards is refused',
  async (point, n) => {
    await stopBoth();
    leader = startEngine(upstream.address, undefined, point === '' ? [] : [`${point}:1:stop`]);
    await expect.poll(async () => (await engines()).leading.length, { timeout: 20_000 }).toBe(1);
    const [hung] = (await engines()).leading;
    await startFollower();
    const load = startBankLoad(origin, { rate: 200 });
    const pid = leader.pid() ?? 0;
    if (point === '') process.kill(pid, 'SIGSTOP');
    else {
      await admin.query("UPDATE accounts SET filler = 'once more'; INSERT INTO entry SELECT 1, 'many' FROM generate_series(1, 25000)");
      await expect.poll(() => stateOf(pid), { timeout: 30_000 }).toBe('T');
    }
    told(`stopped ${point}`, [await beat(n)]);
    expect((await engines()).leading).not.toContain(hung);
    expect(await bankProblems(extended.client)).toEqual([]);
    process.kill(pid, 'SIGCONT');
    // It has noticed, and another process waits in its place.
    await expect.poll(() => leader.pid(), { timeout: 20_000 }).not.toBe(pid);
    await beat(n + 1);
    expect((await engines()).leading).toHaveLength(1);
    await load.stop();
    await admin.query("DELETE FROM entry WHERE label = 'many'");
    await allThere();
  },
  120_000,
);

test('a leader that the network has cut off from the upstream is replaced', async () => {
  await stopBoth();
  const relay = await startRelay(upstream);
  try {
    leader = startEngine({ ...upstream.address, port: relay.port });
    await expect.poll(async () => (await engines()).leading.length, { timeout: 20_000 }).toBe(1);
    const load = startBankLoad(origin, { rate: 200 });
    await beat(600);
    await startFollower();
    relay.hang();
    told('cut off', [await beat(601)]);
    // What it sent meanwhile comes through after all.
    relay.heal();
    await beat(602);
    expect((await engines()).leading).toHaveLength(1);
    await load.stop();
    await allThere();
  } finally {
    await leader.stop();
    await relay.stop();
  }
}, 120_000);

test('a Millrace of which every process was killed is replaced by another one', async () => {
  await stopBoth();
  const env = { MILLRACE_SECRET_KEY: testKey };
  const first = await startMillrace({ upstream: upstream.address, env });
  let second: TestMillrace | undefined;
  try {
    await beat(700);
    second = await startMillrace({ upstream: upstream.address, env });
    await expect.poll(async () => (await engines()).all, { timeout: 20_000 }).toBe(2);
    await sleep(700);
    await first.kill9();
    told('Millrace killed', [await beat(701)]);
    await allThere();
  } finally {
    await first.stop();
    await second?.stop();
  }
}, 120_000);

/** R, S, T (stopped) ..; empty when there is no such process. */
function stateOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3);
  } catch {
    return '';
  }
}
