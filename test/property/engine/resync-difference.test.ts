/**
 * What a copy has otherwise than its storage, found before the last changes have come for the copy: the storage ends with the copy's rows, and those that
 * were the same are not written.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Storage } from '../../../src/catalog/model.ts';
import { createSpool, createStorage, createStorageIndex } from '../../../src/catalog/storage-ddl.ts';
import type { EngineContext } from '../../../src/engine/context.ts';
import { differenceSql, findDifference, touchedSql } from '../../../src/engine/resync-difference.ts';
import { copySettings } from '../../../src/engine/session-settings.ts';
import { applySpool } from '../../../src/engine/spool.ts';
import { connectRaw, type RawConnection } from '../../../src/replication/raw-connection.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { testColumn, testStorage } from '../../support/storages.ts';

const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000);

let upstream: TestPostgres;
let session: RawConnection;

const storage = (id: number, keyAttnums: number[]): Storage =>
  // Equal numbers that are written otherwise are not the same.
  testStorage({ id, columns: [testColumn(1, 'integer'), testColumn(2, 'numeric'), testColumn(3, 'text')], keyAttnums });
/** Storages and their copies. */
const keyed = [storage(1, [1]), storage(2, [1])] as const;
const loose = [storage(3, []), storage(4, [])] as const;

beforeAll(async () => {
  upstream = await startPostgres({});
  session = await connectRaw(upstream.address, { settings: copySettings });
  await session.query('CREATE SCHEMA millrace_data');
  for (const one of [...keyed, ...loose])
    for (const sql of [createStorage(one), createStorageIndex(one), createSpool(one)]) await session.query(sql);
});

afterAll(async () => {
  await session?.close();
  await upstream?.stop();
});

type Row = readonly [number, string | null, string | null];

const numberArb = fc.option(fc.constantFrom('1', '1.0', '2'), { nil: null });
const textArb = fc.option(fc.constantFrom('a', 'b', ''), { nil: null });
const rowArb: fc.Arbitrary<Row> = fc.tuple(fc.integer({ min: 1, max: 6 }), numberArb, textArb);
const keyedRows = fc.uniqueArray(rowArb, { selector: ([key]) => key, maxLength: 6 });
const looseRows = fc.array(fc.tuple(fc.integer({ min: 1, max: 2 }), numberArb, textArb), { maxLength: 8 });

const literal = (value: string | null): string => (value === null ? 'NULL' : `'${value}'`);
const values = ([key, number, text]: Row): string => `${key}, ${literal(number)}, ${literal(text)}`;
/** Few hashes, so that rows that are not alike share one. */
const hash = ([key]: Row): number => key;

async function fill(one: Storage, rows: readonly Row[]): Promise<void> {
  const isKeyed = one.keyAttnums.length > 0;
  await session.query(`TRUNCATE millrace_data.s${one.id}; TRUNCATE millrace_data.p${one.id} RESTART IDENTITY`);
  for (const row of rows)
    await session.query(
      `INSERT INTO millrace_data.s${one.id} (${isKeyed ? '' : 'h, '}c1, c2, c3) VALUES (${isKeyed ? '' : `${hash(row)}, `}${values(row)})`,
    );
}

async function spool(one: Storage, op: string, row: Row): Promise<void> {
  const [own, value] = one.keyAttnums.length > 0 ? ['keep', 'NULL'] : ['h', hash(row)];
  await session.query(
    `INSERT INTO millrace_data.p${one.id} (chunk, xid, seq, op, ${own}, c1, c2, c3) VALUES (0, 1, 0, '${op}', ${value}, ${values(row)})`,
  );
}

async function found(one: Storage): Promise<string[]> {
  const [answer] = await session.query(`SELECT c1, c2, c3 FROM millrace_data.s${one.id}`);
  return (answer?.rows ?? []).map((row) => JSON.stringify(row)).sort();
}

/** Rows by where they are and what wrote them. */
async function versions(one: Storage): Promise<string[]> {
  const [answer] = await session.query(`SELECT ctid, c1, c2, c3 FROM millrace_data.s${one.id}`);
  return (answer?.rows ?? []).map((row) => JSON.stringify(row)).sort();
}

async function finish([stored, copy]: readonly [Storage, Storage]): Promise<void> {
  await session.query(touchedSql(copy));
  await applySpool(session, copy);
  for (const sql of differenceSql(copy, stored, 'found')) await session.query(sql);
}

const engine = (): EngineContext =>
  ({ config: { upstream: upstream.address, database: upstream.address.database } }) as unknown as EngineContext;

test('with a key', async () => {
  await fc.assert(
    fc.asyncProperty(
      keyedRows,
      keyedRows,
      fc.array(fc.tuple(fc.constantFrom('I', 'D'), rowArb), { maxLength: 5 }),
      async (has, copied, changes) => {
        const [stored, copy] = keyed;
        await fill(stored, has);
        await fill(copy, copied);
        expect(await findDifference(engine(), copy, stored)).toBe(true);
        for (const [op, row] of changes) await spool(copy, op, row);
        const before = await versions(stored);
        await finish(keyed);
        const wanted = await found(copy);
        expect(await found(stored)).toEqual(wanted);
        const same = has.map((row) => JSON.stringify([String(row[0]), row[1], row[2]])).filter((row) => wanted.includes(row));
        const after = await versions(stored);
        expect(before.filter((row) => after.includes(row))).toHaveLength(same.length);
      },
    ),
    { seed, numRuns: 120 },
  );
}, 120_000);

test('without a key, rows that are alike and rows that only share a hash', async () => {
  await fc.assert(
    fc.asyncProperty(looseRows, looseRows, fc.array(rowArb, { maxLength: 4 }), fc.nat(3), async (has, copied, inserted, deleted) => {
      const [stored, copy] = loose;
      await fill(stored, has);
      await fill(copy, copied);
      expect(await findDifference(engine(), copy, stored)).toBe(true);
      for (const row of inserted) await spool(copy, 'I', row);
      for (const row of copied.slice(0, deleted)) await spool(copy, 'D', row);
      const kept = await versions(stored);
      await finish(loose);
      const wanted = await found(copy);
      expect(await found(stored)).toEqual(wanted);
      // Of rows that are alike as many stay as there are on both sides.
      const left = [...wanted];
      const same = has.filter((row) => {
        const place = left.indexOf(JSON.stringify([String(row[0]), row[1], row[2]]));
        if (place >= 0) left.splice(place, 1);
        return place >= 0;
      });
      const after = await versions(stored);
      expect(kept.filter((row) => after.includes(row))).toHaveLength(same.length);
    }),
    { seed, numRuns: 120 },
  );
}, 120_000);

test('where hashes are of other columns than on the other side it is not to be found', async () => {
  const [stored, copy] = loose;
  const rehashed = { ...stored, columns: stored.columns.map((one) => ({ ...one, rehashed: true as const })) };
  expect(await findDifference(engine(), copy, rehashed)).toBe(false);
  expect(await findDifference(engine(), rehashed, copy)).toBe(false);
});
