import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isVisible, parseSnapshot } from '../../../src/replication/snapshot-visibility.ts';

describe('parseSnapshot', () => {
  it('reads what pg_current_snapshot prints', () => {
    expect(parseSnapshot('10:20:10,14,15')).toEqual({ xmin: 10, xmax: 20, xip: new Set([10, 14, 15]) });
    expect(parseSnapshot('10:10:')).toEqual({ xmin: 10, xmax: 10, xip: new Set() });
  });

  it('cuts the epoch off', () => {
    expect(parseSnapshot('4294967300:8589934602:8589934600')).toEqual({ xmin: 4, xmax: 10, xip: new Set([8]) });
  });

  it.each(['', '1:2', '1:2:3:4', 'a:b:', '1:2:-3'])('refuses %j', (text) => {
    expect(() => parseSnapshot(text)).toThrow(RangeError);
  });
});

describe('isVisible', () => {
  it('sees what ended before, and not what ran or came after', () => {
    const snapshot = parseSnapshot('10:20:10,14');
    const seen = [...Array(25).keys()].filter((xid) => xid > 2 && isVisible(snapshot, xid));
    expect(seen).toEqual([3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
  });

  it('agrees with 64-bit comparison across the wraparound', () => {
    fc.assert(
      fc.property(
        fc.bigInt({ min: 1n << 33n, max: 1n << 40n }),
        fc.bigInt({ min: 0n, max: 1000n }),
        fc.bigInt({ min: -(1n << 30n), max: 1n << 30n }),
        fc.array(fc.bigInt({ min: 0n, max: 1000n }), { maxLength: 5 }),
        (xmin, width, offset, running) => {
          const xip = running.filter((one) => one < width).map((one) => xmin + one);
          const snapshot = parseSnapshot(`${xmin}:${xmin + width}:${xip.join(',')}`);
          const xid = xmin + offset;
          const expected = xid < xmin || (xid < xmin + width && !xip.includes(xid));
          expect(isVisible(snapshot, Number(xid & 0xffffffffn))).toBe(expected);
        },
      ),
    );
  });
});
