/**
 * A migration beside writers: old and new applications, through Millrace and straight to the upstream, before, during and after cutover and revert,
 * while Millrace or the upstream is killed. Nothing is lost, nothing is there twice, and nobody sees an error that an undisturbed run would not have.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Round, startRound } from '../support/migration-round.ts';
import { type Shape, type Step, startWitness, type Witness } from '../support/witness.ts';
import { itemsMigration, itemsQuery, itemsStep, itemsTables } from '../support/witness-items.ts';
import { bulkPeople, peopleJoined, peopleQuery, peopleStep, peopleTables } from '../support/witness-people.ts';

/** How long writers write between two steps. */
const stretchMs = Number(process.env['MILLRACE_WITNESS_MS'] ?? 1200);
/** Rows of one transaction that is open across a cutover. */
const bulkRows = Number(process.env['MILLRACE_WITNESS_BULK'] ?? 10_000);
/** How often cutover and revert follow one another. */
const turns = Number(process.env['MILLRACE_WITNESS_TURNS'] ?? 1);

const options = "WITH (CUTOVER = MANUAL, NEW VERSION = app_v2, OLD VERSION = app_v1, CHUNK '64kB')";
const createMove = `CREATE MIGRATION m MOVE COLUMNS (email, verified, profile) FROM public.people TO TABLE public.people_mail KEY (id AS person_id) ABSENT WHEN NULL ${options}`;
const paths: Readonly<Record<Shape, string>> = { old: 'app_v1, public', new: 'app_v2, public' };

let round: Round;

beforeEach(async () => {
  round = await startRound('m');
}, 120_000);

afterEach(() => round?.stop());

/** Writers of either shape; each says its path and whether it goes through Millrace. */
function start<Row extends object>(
  step: (shape: Shape) => Step<Row>,
  kinds: readonly (readonly [number: number, shape: Shape, path: 'millrace' | 'direct'])[],
): Witness[] {
  return kinds.map(([number, shape, path]) =>
    startWitness({
      url: path === 'millrace' ? round.millrace.url() : round.upstream.url,
      ...{ number, searchPath: paths[shape], step: step(shape), prepares: true },
    }),
  );
}

const steps: readonly (readonly [request: string, phase: string])[] = [
  ['CUTOVER', 'cut_over'],
  ...Array.from(
    { length: turns },
    () =>
      [
        ['REVERT', 'ready'],
        ['CUTOVER', 'cut_over'],
      ] as const,
  ).flat(),
];

const oldPeople = [[paths.old, peopleQuery('people')]] as const;

describe('moving columns', () => {
  test('beside writers of every kind, from its creation to its end', { timeout: 400_000 }, async () => {
    await round.ask(peopleTables({ partitioned: false }));
    const bulk = startWitness({ url: round.upstream.url, number: 6, searchPath: paths.old, step: bulkPeople(bulkRows), slow: true });
    const old = [
      bulk,
      ...start(peopleStep, [
        [0, 'old', 'millrace'],
        [1, 'old', 'direct'],
        [2, 'old', 'millrace'],
      ]),
    ];
    const all = [...old];
    try {
      await sleep(stretchMs);
      await round.say(createMove);
      await round.until('ready');
      const fresh = start(peopleStep, [
        [3, 'new', 'millrace'],
        [4, 'new', 'direct'],
        [5, 'new', 'millrace'],
      ]);
      all.push(...fresh);
      await sleep(stretchMs);
      await round.check(all, oldPeople);
      await round.truncate(all, 'public.people');
      for (const [request, phase] of steps) {
        await round.say(`ALTER MIGRATION m ${request}`);
        await round.until(phase);
        await sleep(stretchMs);
        await round.check(all, oldPeople);
      }
      // Old applications have left.
      await Promise.all(old.map((witness) => witness.stop()));
      await round.say('ALTER MIGRATION m FINALIZE');
      await round.until('finished');
      await sleep(stretchMs / 2);
      await round.check(fresh, [[paths.new, peopleQuery(peopleJoined)]]);
      expect(bulk.committed).toBeGreaterThan(1);
      expect(all.every((witness) => witness === bulk || witness.committed > 20)).toBe(true);
    } finally {
      await Promise.all(all.map((witness) => witness.stop()));
    }
  });

  test('of a partitioned table with kills of the engine in every phase', { timeout: 400_000 }, async () => {
    await round.ask(peopleTables({ partitioned: true }));
    const old = start(peopleStep, [
      [0, 'old', 'direct'],
      [1, 'old', 'millrace'],
      [2, 'old', 'direct'],
    ]);
    const all = [...old];
    let going = true;
    try {
      await sleep(stretchMs);
      await round.say(`SET millrace.wait = off; ${createMove}`);
      all.push(...start(peopleStep, [[3, 'new', 'direct']]));
      const killer = (async () => {
        while (going) {
          await round.millrace.waitReady().catch(() => undefined);
          await sleep(500 + Math.random() * 4500);
          killEngines();
        }
      })();
      await round.until('ready');
      for (const [request, phase] of [...steps, ['REVERT', 'ready'] as const]) {
        await sleep(stretchMs);
        await round.say(`SET millrace.wait = off; ALTER MIGRATION m ${request}`);
        await round.until(phase);
      }
      going = false;
      await killer;
      await round.millrace.waitReady();
      await round.check(all, oldPeople);
      await round.say('ALTER MIGRATION m CANCEL');
      await round.until('cancelled');
      await round.check(old, oldPeople);
      await slotsGone();
    } finally {
      going = false;
      await Promise.all(all.map((witness) => witness.stop()));
    }
  });
});

describe('the upstream is killed', () => {
  /** As a power cut leaves it, some time after something was asked for. */
  const killUpstream = async (afterMs: number): Promise<void> => {
    await sleep(afterMs);
    await round.upstream.kill9();
    await round.upstream.restart();
    await round.ask('SELECT 1');
    await round.millrace.waitReady();
  };
  /** Looks often, because phases may be short. */
  const reached = async (phases: readonly string[]): Promise<void> => {
    while (!phases.includes(String((await round.state())['phase']))) await sleep(2);
  };

  test('while it copies, verifies, is ready, cuts over, has cut over, reverts, is finished', { timeout: 400_000 }, async () => {
    await round.ask(peopleTables({ partitioned: false }));
    await round.ask(
      `INSERT INTO people (id, name, email) SELECT 8 * i + 7, 'early', i || '@' FROM generate_series(1, 20000) i;
       INSERT INTO ledger (writer, n, id, state) SELECT 7, 1, id, to_jsonb(p) - 'shouted' FROM people p`,
    );
    const old = start(peopleStep, [
      [0, 'old', 'direct'],
      [1, 'old', 'millrace'],
    ]);
    const all = [...old];
    try {
      await sleep(stretchMs / 2);
      await round.say(`SET millrace.wait = off; ${createMove}`);
      await reached(['copying', 'verifying', 'ready']);
      await killUpstream(20);
      await reached(['verifying', 'ready']);
      await killUpstream(0);
      await round.until('ready');
      await killUpstream(100);
      all.push(
        ...start(peopleStep, [
          [2, 'new', 'direct'],
          [3, 'new', 'millrace'],
        ]),
      );
      await round.check(all, oldPeople);
      for (const [request, phase] of steps) {
        await sleep(stretchMs / 2);
        await round.say(`SET millrace.wait = off; ALTER MIGRATION m ${request}`);
        await killUpstream(Math.random() * 120);
        await round.until(phase);
        await sleep(stretchMs / 2);
        await round.check(all, oldPeople);
        await killUpstream(100);
      }
      await Promise.all(old.map((witness) => witness.stop()));
      await round.say('SET millrace.wait = off; ALTER MIGRATION m FINALIZE');
      await killUpstream(Math.random() * 60);
      await round.until('finished');
      await round.check(all, [[paths.new, peopleQuery(peopleJoined)]]);
      await slotsGone();
    } finally {
      await Promise.all(all.map((witness) => witness.stop()));
    }
  });
});

/** A slot that nobody reads would hold WAL until the disk is full. It goes after the commit that ends the migration. */
const slotsGone = (): Promise<void> =>
  vi.waitFor(
    async () => expect(await round.ask("SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ '^millrace_migration'")).toEqual([]),
    20_000,
  );

function killEngines(): void {
  for (const pid of round.millrace.enginePids()) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  }
}

describe('another shape', () => {
  for (const [reshaping, key, partitioned] of [
    ['alter', 'text COLLATE nocase', false],
    ['split', 'text', true],
  ] as const) {
    const shapes = (['old', 'new'] as const).map((shape) => [paths[shape], itemsQuery(reshaping, shape)] as const);
    test(`${reshaping} of a ${partitioned ? 'partitioned ' : ''}table with a key of two columns (${key}) and foreign keys both ways`, {
      timeout: 400_000,
    }, async () => {
      await round.ask(itemsTables({ key, partitioned }));
      const step = (shape: Shape): ReturnType<typeof itemsStep> => itemsStep(reshaping, shape);
      const old = start(step, [
        [0, 'old', 'millrace'],
        [1, 'old', 'direct'],
      ]);
      const all = [...old];
      try {
        await sleep(stretchMs);
        await round.say(`CREATE MIGRATION m ${itemsMigration[reshaping]} ${options}`);
        await round.until('ready');
        const fresh = start(step, [
          [2, 'new', 'millrace'],
          [3, 'new', 'direct'],
        ]);
        all.push(...fresh);
        await sleep(stretchMs);
        await round.check(all, shapes);
        for (const [request, phase] of steps) {
          await round.say(`ALTER MIGRATION m ${request}`);
          await round.until(phase);
          await sleep(stretchMs);
          await round.check(all, shapes);
        }
        await Promise.all(old.map((witness) => witness.stop()));
        await round.say('ALTER MIGRATION m FINALIZE');
        await round.until('finished');
        await sleep(stretchMs / 2);
        await round.check(fresh, [['public', itemsQuery(reshaping, 'new')]]);
        expect(all.every((witness) => witness.committed > 20)).toBe(true);
      } finally {
        await Promise.all(all.map((witness) => witness.stop()));
      }
    });
  }
});
