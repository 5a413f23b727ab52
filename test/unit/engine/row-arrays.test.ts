import fc from 'fast-check';
import { expect, test } from 'vitest';
import { columnArrays } from '../../../src/engine/row-arrays.ts';
import { RowBuffer } from '../../../src/replication/copy-rows.ts';

/** Elements of a text[] in binary format. */
function elements(binary: Buffer): (string | null)[] {
  if (binary.readInt32BE(0) === 0) return [];
  const values: (string | null)[] = [];
  for (let at = 20; at < binary.length; ) {
    const length = binary.readInt32BE(at);
    at += 4;
    values.push(length < 0 ? null : binary.toString('utf8', at, at + length));
    at += Math.max(length, 0);
  }
  return values;
}

const value = fc.option(
  fc.oneof(
    fc.string({ unit: fc.constantFrom('\\', '\t', '\n', '\r', '\b', '\f', '\v', 'N', 'n', 'a', 'é', '😊', '.') }),
    fc.string({ maxLength: 200 }).map((text) => text.replaceAll('\0', '')),
    fc.constantFrom('\\N', '\\.', ''),
  ),
);

test('lines in COPY format become one array per column, byte for byte', () => {
  const rows = fc
    .integer({ min: 1, max: 5 })
    .chain((width) => fc.array(fc.array(value, { minLength: width, maxLength: width }), { minLength: 1, maxLength: 30 }));
  fc.assert(
    fc.property(rows, (lines) => {
      const buffer = new RowBuffer();
      for (const line of lines) {
        for (const field of line) {
          if (field === null) buffer.null();
          else buffer.text(field);
        }
        buffer.endLine();
      }
      const width = lines[0]?.length ?? 0;
      const arrays = columnArrays(buffer.take(), width);
      expect(arrays.map((array) => elements(array.toParam().binary))).toEqual(
        Array.from({ length: width }, (_, column) => lines.map((line) => line[column] ?? null)),
      );
    }),
  );
});
