/** Transactions that wait to be looked at. */
import { describe, expect, test } from 'vitest';
import { Touched } from '../../../src/migration/touched.ts';
import { parseSnapshot } from '../../../src/replication/snapshot-visibility.ts';
import { transaction } from './transactions.ts';

describe('transactions that wait', () => {
  test('what came while a cutover was being committed was forgotten, and rows were not as they should be', () => {
    const touched = new Touched();
    touched.add(transaction(1, 'a'));
    const taken = touched.all();
    touched.add(transaction(2, 'b'));
    expect(taken.map(({ xid }) => xid)).toEqual([1]);
    touched.taken(taken);
    expect(touched.all().map(({ xid }) => xid)).toEqual([2]);
    expect(touched.oldest?.xid).toBe(2);
  });

  test('counts transactions and keys that wait', () => {
    const touched = new Touched();
    touched.add(transaction(1, 'a', 'b'));
    touched.add({ ...transaction(2), keys: null });
    touched.add(transaction(3, 'a'));
    expect([touched.count, touched.keys]).toEqual([3, 3]);
    touched.taken(touched.visible(parseSnapshot('2:3:')));
    expect(touched.all().map(({ xid }) => xid)).toEqual([3]);
    expect([touched.count, touched.keys]).toEqual([1, 1]);
  });
});
