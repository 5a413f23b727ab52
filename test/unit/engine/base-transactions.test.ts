import { describe, expect, test } from 'vitest';
import { targetOf } from '../../../src/engine/base/shapes.ts';
import { type BaseTarget, type BaseTransaction, transactionHandler } from '../../../src/engine/base/transactions.ts';
import { type TupleView, valueKind } from '../../../src/replication/pgoutput.ts';

/** null: SQL NULL; undefined: unchanged TOAST. */
function row(...values: (string | null | undefined)[]): TupleView {
  const buffer = Buffer.from(values.map((value) => value ?? '').join(''));
  const ends: number[] = [];
  for (const value of values) ends.push((ends.at(-1) ?? 0) + Buffer.byteLength(value ?? ''));
  return {
    buffer,
    count: values.length,
    kinds: Uint8Array.from(
      values.map((value) => (value === null ? valueKind.null : value === undefined ? valueKind.unchangedToast : valueKind.text)),
    ),
    starts: Uint32Array.from([0, ...ends.slice(0, -1)]),
    ends: Uint32Array.from(ends),
    leavesOut: values.includes(undefined),
  };
}

function decoder(targets: ReadonlyMap<number, BaseTarget>, wanted: (xid: number) => boolean = () => true) {
  const committed: BaseTransaction[] = [];
  const markers: string[] = [];
  const senders: (number | null)[] = [];
  const handler = transactionHandler({
    targets,
    wanted,
    relation: () => undefined,
    committed: (transaction) => committed.push(transaction),
    marker: (content, transaction) => {
      markers.push(content);
      senders.push(transaction?.xid ?? null);
    },
    ended: () => undefined,
  });
  return { handler, committed, markers, senders };
}

const target: BaseTarget = { baseId: 7, attnums: [1, 3], places: [0, 1], computed: [], unusable: null };

const lines = (transaction: BaseTransaction | undefined): string[] =>
  (transaction?.rows ?? []).flatMap(({ frames }) =>
    frames.flatMap((frame) => {
      const bytes = Buffer.isBuffer(frame) ? frame : frame.read();
      return bytes.subarray(5).toString().trimEnd().split('\n');
    }),
  );

describe('transactions of base tables', () => {
  test('old rows weigh -1, new ones 1, and values that were left out come from the old row', () => {
    const { handler, committed } = decoder(new Map([[100, target]]));
    handler.begin(1n, 0n, 500);
    handler.insert(100, row('1', 'a\tb'));
    handler.update(100, 'O', row('1', 'long'), row('2', undefined));
    handler.delete(100, 'O', row('3', null));
    handler.insert(999, row('of no concern'));
    handler.commit(10n, 20n, 0n);
    expect(lines(committed[0])).toEqual(['1\t-1\t1\ta\\tb', '-1\t1\t1\tlong', '1\t1\t2\tlong', '-1\t-1\t3\t\\N']);
    expect(committed[0]).toMatchObject({ xid: 500, commitLsn: 10n, endLsn: 20n });
    expect(committed[0]?.unknown.size).toBe(0);
  });

  test('what cannot be told in rows is named', () => {
    const { handler, committed } = decoder(new Map([[100, target]]));
    handler.begin(1n, 0n, 500);
    handler.update(100, '', undefined, row('1', 'x'));
    handler.commit(10n, 20n, 0n);
    handler.begin(1n, 0n, 501);
    handler.truncate([100, 101], false, false);
    handler.commit(30n, 40n, 0n);
    expect(committed.map(({ unknown }) => [...unknown])).toEqual([[[7, 'its REPLICA IDENTITY was not FULL']], [[7, 'TRUNCATE']]]);
  });

  test('what was taken in before is skipped, what concerns no table is not told, markers are', () => {
    const { handler, committed, markers, senders } = decoder(new Map([[100, target]]), (xid) => xid > 500);
    for (const xid of [500, 501]) {
      handler.begin(1n, 0n, xid);
      handler.insert(100, row(String(xid), 'x'));
      handler.commit(10n, 20n, 0n);
    }
    handler.begin(1n, 0n, 502);
    const content = Buffer.from('3:4');
    handler.message(true, 1n, 'millrace', content, 0, content.length);
    expect(markers).toEqual([]);
    handler.commit(30n, 40n, 0n);
    expect(committed.map(({ xid }) => xid)).toEqual([501]);
    expect(markers).toEqual(['3:4']);
    expect(senders).toEqual([502]);
  });

  test('a large transaction is kept in a file, in order', () => {
    const { handler, committed } = decoder(new Map([[100, target]]));
    handler.begin(1n, 0n, 500);
    const note = 'n'.repeat(1000);
    for (let i = 0; i < 20_000; i++) handler.insert(100, row(String(i), note));
    handler.commit(10n, 20n, 0n);
    const [transaction] = committed;
    expect(transaction?.bytes).toBeLessThan(5 * 1024 * 1024);
    expect(lines(transaction)).toEqual(Array.from({ length: 20_000 }, (_, i) => `1\t-1\t${i}\t${note}`));
    transaction?.release();
  });
});

describe('places of columns in a stream', () => {
  const column = (attnum: number, name: string) => ({ attnum, name, type: 'text', collation: null });
  const message = (...names: string[]) => ({ columns: names.map((name) => ({ key: true, name, typeOid: 25, typmod: -1 })) });
  const delta = [1, 2, 3].map((attnum) => ({ attnum, type: 'text' }));
  const texts = ['text', 'text', 'text'];

  test('columns are found by what they are called now, or were when last seen', () => {
    const facts = {
      id: 7,
      computed: [],
      known: [column(1, 'a'), column(2, 'b')],
      now: [column(1, 'a'), column(2, 'renamed'), column(3, 'added')],
      delta,
    };
    expect(targetOf(facts, message('a', 'b'), texts)).toEqual({ baseId: 7, attnums: [1, 2], places: [0, 1], computed: [], unusable: null });
    expect(targetOf(facts, message('a', 'renamed', 'added'), texts)).toMatchObject({ attnums: [1, 2, 3], places: [0, 1, 2] });
  });

  test('a column of another type than the delta table has is left out', () => {
    const facts = { id: 7, computed: [], known: [], now: [column(1, 'a'), column(2, 'b')], delta };
    expect(targetOf(facts, message('a', 'b'), ['text', 'integer'])).toMatchObject({ attnums: [1] });
  });

  test('columns that have exchanged names since make the rows unusable', () => {
    const facts = { id: 7, computed: [], known: [column(1, 'a'), column(2, 'b')], now: [column(1, 'b'), column(2, 'a')], delta };
    expect(targetOf(facts, message('a', 'b'), texts).unusable).toBe('its columns exchanged names');
  });
});
