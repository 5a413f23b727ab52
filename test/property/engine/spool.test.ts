/**
 * What a spool does to a copy whose rows are of different snapshots: whatever each row has seen of the changes, and in what portions they are applied,
 * it ends as the table did.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createSpool, createStorage, createStorageIndex } from '../../../src/catalog/storage-ddl.ts';
import { copySettings } from '../../../src/engine/session-settings.ts';
import { applySpool } from '../../../src/engine/spool.ts';
import { connectRaw, type RawConnection } from '../../../src/replication/raw-connection.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { testColumn, testStorage } from '../../support/storages.ts';

const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000);

let upstream: TestPostgres;
let session: RawConnection;

const storage = testStorage({
  id: 7,
  // Arrays: what gathers values must not take them for something to be put together.
  columns: [testColumn(1, 'integer'), testColumn(2, 'text'), testColumn(3, 'integer[]')],
  state: 'copying',
});

beforeAll(async () => {
  upstream = await startPostgres({});
  session = await connectRaw(upstream.address, { settings: copySettings });
  for (const sql of ['CREATE SCHEMA millrace_data', createStorage(storage), createStorageIndex(storage), createSpool(storage)])
    await session.query(sql);
});

afterAll(async () => {
  await session?.close();
  await upstream?.stop();
});

type Row = { readonly text: string | null; readonly list: string | null };
type Table = ReadonlyMap<number, Row>;
/** A row of the spool, and the table after it. */
interface Change {
  readonly op: 'I' | 'U' | 'D' | 'T';
  readonly key: number;
  readonly keep: string | null;
  readonly row: Row;
  readonly after: Table;
}

const keys = [1, 2, 3, 4];
const textArb = fc.option(fc.constantFrom('a', 'b', 'c'), { nil: null });
const listArb = fc.option(fc.constantFrom('{1}', '{2,3}', '{}'), { nil: null });
const actionArb = fc.record({
  kind: fc.oneof(
    { weight: 9, arbitrary: fc.constantFrom('write' as const, 'delete' as const) },
    { weight: 1, arbitrary: fc.constant('truncate' as const) },
  ),
  key: fc.constantFrom(...keys),
  row: fc.record({ text: textArb, list: listArb }),
  keepText: fc.boolean(),
  keepList: fc.boolean(),
});

/** The actions as changes that the stream could bring: what is there is updated or deleted, what is not is inserted. */
function history(start: Table, actions: readonly (typeof actionArb extends fc.Arbitrary<infer A> ? A : never)[]): Change[] {
  let table = start;
  return actions.flatMap(({ kind, key, row, keepText, keepList }): Change[] => {
    const next = new Map(table);
    const old = table.get(key);
    const change = (op: Change['op'], written: Row, keep: string | null): Change[] => {
      table = next;
      return [{ op, key, keep, row: written, after: next }];
    };
    const none: Row = { text: null, list: null };
    if (kind === 'truncate') {
      next.clear();
      return change('T', none, null);
    }
    if (kind === 'delete') {
      if (old === undefined) return [];
      next.delete(key);
      return change('D', none, null);
    }
    if (old === undefined) {
      next.set(key, row);
      return change('I', row, null);
    }
    next.set(key, { text: keepText ? old.text : row.text, list: keepList ? old.list : row.list });
    const sent = { text: keepText ? null : row.text, list: keepList ? null : row.list };
    return change('U', sent, keepText || keepList ? `0${keepText ? 1 : 0}${keepList ? 1 : 0}` : null);
  });
}

const literal = (value: string | null): string => (value === null ? 'NULL' : `'${value}'`);

test('rows of a copy may have seen any part of what the spool has', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(fc.tuple(fc.constantFrom(...keys), fc.record({ text: textArb, list: listArb })), { selector: ([key]) => key }),
      fc.array(actionArb, { maxLength: 14 }),
      fc.array(fc.nat(14), { minLength: keys.length, maxLength: keys.length }),
      fc.array(fc.nat(14), { maxLength: 3 }),
      async (start, actions, seen, cuts) => {
        const begin: Table = new Map(start);
        const changes = history(begin, actions);
        const asOf = (count: number): Table => (count === 0 ? begin : (changes[Math.min(count, changes.length) - 1]?.after ?? begin));
        await session.query('TRUNCATE millrace_data.s7; TRUNCATE millrace_data.p7 RESTART IDENTITY');
        for (const [index, key] of keys.entries()) {
          const row = asOf(seen[index] ?? 0).get(key);
          if (row !== undefined)
            await session.query(`INSERT INTO millrace_data.s7 VALUES (${key}, ${literal(row.text)}, ${literal(row.list)})`);
        }
        for (const { op, key, keep, row } of changes) {
          await session.query(
            `INSERT INTO millrace_data.p7 (chunk, xid, seq, op, keep, c1, c2, c3)
             VALUES (0, 1, 0, '${op}', ${literal(keep)}, ${op === 'T' ? 'NULL' : key}, ${literal(row.text)}, ${literal(row.list)})`,
          );
        }
        for (const cut of [...cuts].sort((a, b) => a - b)) {
          await applySpool(session, storage, `place <= ${cut}`);
          await session.query(`DELETE FROM millrace_data.p7 WHERE place <= ${cut}`);
        }
        await applySpool(session, storage);
        const [found] = await session.query('SELECT c1, c2, c3 FROM millrace_data.s7 ORDER BY c1');
        const wanted = [...asOf(changes.length)].sort(([a], [b]) => a - b).map(([key, { text, list }]) => [String(key), text, list]);
        expect(found?.rows).toEqual(wanted);
      },
    ),
    { seed, numRuns: 150 },
  );
}, 120_000);
