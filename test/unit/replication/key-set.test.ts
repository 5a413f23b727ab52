import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KeySet } from '../../../src/replication/key-set.ts';
import { type TupleView, valueKind } from '../../../src/replication/pgoutput.ts';
import { hashLine } from '../../../src/replication/row-hash.ts';

function row(...values: readonly (string | null)[]): TupleView {
  const parts = values.map((value) => Buffer.from(value ?? ''));
  const starts = new Uint32Array(values.length);
  const ends = new Uint32Array(values.length);
  let at = 3;
  parts.forEach((part, i) => {
    starts[i] = at;
    at += part.length;
    ends[i] = at;
  });
  const kinds = Uint8Array.from(values, (value) => (value === null ? valueKind.null : valueKind.text));
  return { buffer: Buffer.concat([Buffer.alloc(3), ...parts]), count: values.length, kinds, starts, ends, leavesOut: false };
}

describe('KeySet', () => {
  it('finds every key again and hardly ever one that was not added', () => {
    const set = new KeySet();
    for (let i = 0; i < 200_000; i++) expect(set.add(row(String(i)), [0])).toBe(false);
    for (let i = 0; i < 200_000; i += 7) expect(set.add(row(String(i)), [0])).toBe(true);
    expect(set.size).toBe(200_000);
    set.clear();
    expect(set.size).toBe(0);
    expect(set.add(row('5'), [0])).toBe(false);
  });

  it('agrees with a set of the keys', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.option(fc.string({ maxLength: 3 })), fc.option(fc.string({ maxLength: 3 })))), (keys) => {
        const set = new KeySet();
        const seen = new Set<string>();
        for (const key of keys) {
          const name = JSON.stringify(key);
          expect(set.add(row('other', ...key), [1, 2])).toBe(seen.has(name));
          seen.add(name);
        }
      }),
    );
  });

  it('keeps neighbours apart: lengths, NULLs, order', () => {
    const set = new KeySet();
    for (const key of [
      ['a', 'bc'],
      ['ab', 'c'],
      ['', null],
      [null, ''],
      [null, null],
      ['', ''],
      ['bc', 'a'],
      ['abc', ''],
    ] as const) {
      expect(set.add(row(...key), [0, 1]), JSON.stringify(key)).toBe(false);
    }
  });

  it('copes with the hash that is all zeros', () => {
    const set = new KeySet();
    expect(set.addHash(0, 0)).toBe(false);
    expect(set.addHash(0, 0)).toBe(true);
  });
});

describe('hashLine', () => {
  // Reference values of MurmurHash3_x86_32, seed 0.
  it.each([
    ['', 0],
    ['a', 0x3c2569b2],
    ['abc', 0xb3dd93fa],
    ['Hello, world!', 0xc0363e43],
    ['The quick brown fox jumps over the lazy dog', 0x2e4ff723],
  ])('%j', (text, expected) => {
    const bytes = Buffer.from(`xx${text}yyyy`);
    expect(hashLine(bytes, 2, 2 + text.length)).toBe(expected | 0);
  });
});
