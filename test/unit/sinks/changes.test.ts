import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Change, ChangeMaker, type OutboxRow, type Pairing } from '../../../src/sinks/changes.ts';
import { RowLine } from '../../../src/sinks/row-lines.ts';

/** A row whose key is its first value. */
function row(ts: number, weight: number, ...values: string[]): OutboxRow {
  const buffer = Buffer.from(`${ts}\t${values.join('\t')}`);
  const start = `${ts}\t`.length;
  const line = new RowLine({ fieldOf: [...values.keys()] }, buffer, start, buffer.length);
  return { ts, weight, line, groupStart: 0, groupEnd: start + (values[0]?.length ?? 0), partition: null };
}

function made(pairing: Pairing, rows: readonly OutboxRow[]): Change[] {
  const maker = new ChangeMaker(pairing);
  const changes: Change[] = [];
  for (const one of rows) maker.add(one, changes);
  maker.flush(changes);
  return changes;
}

const shown = (changes: readonly Change[]): string[] =>
  changes.map(({ ts, before, after }) => `${ts} ${before?.values().join('/') ?? '-'} > ${after?.values().join('/') ?? '-'}`);

describe('changes of one epoch', () => {
  test('an update of a key is one upsert, a deletion a tombstone', () => {
    expect(shown(made('upsert', [row(1, -1, 'a', 'old'), row(1, 1, 'a', 'new'), row(1, -1, 'b', 'gone')]))).toEqual([
      '1 - > a/new',
      '1 b/gone > -',
    ]);
  });

  test('with pairs the old row comes with the new one', () => {
    expect(shown(made('pair', [row(1, -1, 'a', 'old'), row(1, 1, 'a', 'new')]))).toEqual(['1 a/old > a/new']);
  });

  test('what came and went, and updates that change nothing, are not seen', () => {
    expect(made('upsert', [row(1, -1, 'a', 'x'), row(1, 1, 'a', 'x')])).toEqual([]);
    expect(shown(made('pair', [row(1, -1, 'a', '1'), row(1, -1, 'a', '2'), row(1, 1, 'a', '2'), row(1, 1, 'a', '3')]))).toEqual([
      '1 a/1 > a/3',
    ]);
  });

  test('the same key in two epochs is two changes', () => {
    expect(shown(made('upsert', [row(1, 1, 'a', '1'), row(2, -1, 'a', '1'), row(2, 1, 'a', '2')]))).toEqual(['1 - > a/1', '2 - > a/2']);
  });

  test('rows without a key: each copy is a message of its own', () => {
    expect(shown(made('each', [row(1, -1, 'a'), row(1, 1, 'a'), row(1, 1, 'a')]))).toEqual(['1 - > a']);
    expect(shown(made('each', [row(1, 1, 'a'), row(1, 1, 'a')]))).toEqual(['1 - > a', '1 - > a']);
  });

  test('applied in order, the changes turn the table before into the table after', () => {
    const step = fc.record({ key: fc.constantFrom('a', 'b', 'c'), value: fc.option(fc.constantFrom('1', '2', '3'), { nil: null }) });
    fc.assert(
      fc.property(
        fc.array(fc.array(step, { maxLength: 6 }), { maxLength: 6 }),
        fc.constantFrom<Pairing>('upsert', 'pair'),
        (epochs, pairing) => {
          const table = new Map<string, string>();
          const rows: OutboxRow[] = [];
          epochs.forEach((steps, index) => {
            const ofEpoch: OutboxRow[] = [];
            for (const { key, value } of steps) {
              const old = table.get(key);
              if (old !== undefined) ofEpoch.push(row(index + 1, -1, key, old));
              if (value === null) table.delete(key);
              else {
                table.set(key, value);
                ofEpoch.push(row(index + 1, 1, key, value));
              }
            }
            const key = ({ line }: OutboxRow): string => line.values()[0] ?? '';
            rows.push(...ofEpoch.sort((a, b) => key(a).localeCompare(key(b)) || a.weight - b.weight));
          });
          const copy = new Map<string, string>();
          for (const change of made(pairing, rows)) {
            const [before, after] = [change.before?.values() ?? null, change.after?.values() ?? null];
            if (pairing === 'pair' && before !== null) expect(copy.get(before[0] ?? '')).toBe(before[1]);
            if (before !== null && after === null) copy.delete(before[0] ?? '');
            if (after !== null) copy.set(after[0] ?? '', after[1] ?? '');
          }
          expect(copy).toEqual(table);
        },
      ),
    );
  });
});
