/** Builds pgoutput messages by hand, from the documentation rather than from the decoder. */

export const u8 = (value: number): Buffer => Buffer.from([value]);
export const u16 = (value: number): Buffer => Buffer.from([value >> 8, value & 255]);
export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
};
export const u64 = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt.asUintN(64, value));
  return bytes;
};
export const cstr = (text: string): Buffer => Buffer.concat([Buffer.from(text), u8(0)]);
export const tag = (letter: string): Buffer => Buffer.from(letter, 'latin1');
export const message = (...parts: readonly Buffer[]): Buffer => Buffer.concat(parts);

export const unchanged = Symbol('unchanged TOAST');

/** TupleData. */
export const tuple = (...values: readonly (string | null | typeof unchanged)[]): Buffer =>
  Buffer.concat([
    u16(values.length),
    ...values.map((value) => {
      if (value === null) return tag('n');
      if (value === unchanged) return tag('u');
      const bytes = Buffer.from(value as string);
      return Buffer.concat([tag('t'), u32(bytes.length), bytes]);
    }),
  ]);
