import { describe, expect, it } from 'vitest';
import { formatLsn, parseLsn } from '../../../src/replication/lsn.ts';

describe('lsn', () => {
  it.each([
    ['0/0', 0n],
    ['0/1', 1n],
    ['16/B374D848', 0x16b374d848n],
    ['FFFFFFFF/FFFFFFFF', 0xffffffffffffffffn],
    ['1/0', 0x100000000n],
  ])('%s', (text, value) => {
    expect(parseLsn(text)).toBe(value);
    expect(formatLsn(value)).toBe(text);
  });

  it('reads lower case and leading zeros', () => {
    expect(parseLsn('00000016/b374d848')).toBe(0x16b374d848n);
  });

  it.each(['', '0', '/', '0/', '/0', '0/g', '123456789/0', '0/123456789', ' 0/0', '0/0\n0'])('refuses %j', (text) => {
    expect(() => parseLsn(text)).toThrow(RangeError);
  });

  it('refuses numbers that are no LSN', () => {
    expect(() => formatLsn(-1n)).toThrow(RangeError);
    expect(() => formatLsn(1n << 64n)).toThrow(RangeError);
  });
});
