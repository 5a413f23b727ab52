import { expect, it } from 'vitest';
import { RecentXids } from '../../../src/engine/recent-xids.ts';

it('the transactions of late are known, those of long ago are not, and numbers that begin again are no matter', () => {
  const xids = new RecentXids();
  expect(xids.has(3)).toBe(false);
  for (let xid = 4_294_960_000; xid < 4_294_967_296; xid++) xids.add(xid);
  for (let xid = 3; xid < 1000; xid++) xids.add(xid);
  expect([4_294_960_000, 4_294_967_295, 3, 999].map((xid) => xids.has(xid))).toEqual([true, true, true, true]);
  expect(xids.has(1000)).toBe(false);
  for (let xid = 1000; xid < 20_000; xid++) xids.add(xid);
  expect([4_294_967_295, 3, 19_999].map((xid) => xids.has(xid))).toEqual([false, false, true]);
});
