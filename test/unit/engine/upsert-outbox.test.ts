import { expect, it } from 'vitest';
import type { PlainStep } from '../../../src/engine/apply-steps.ts';
import { writtenBy } from '../../../src/engine/upsert-outbox.ts';

const shape = { inserts: false, updates: false, deletes: false, repeats: false, keeps: false, rehash: false };
const rows = (storageId: number, insertRows: number, changes: Partial<typeof shape> | null): PlainStep => ({
  kind: 'rows',
  storageId,
  inserts: [],
  insertRows,
  changes: [],
  changeRows: changes === null ? 0 : 1,
  shape: { ...shape, ...changes },
});

it.each([
  ['rows that come', [rows(1, 5, null)], 'updated'],
  ['rows that change', [rows(1, 0, { updates: true })], 'updated'],
  ['rows that change, with values left out', [rows(1, 0, { updates: true, keeps: true })], 'updated'],
  ['keys that change more than once: by one statement, in their last state', [rows(1, 0, { updates: true, repeats: true })], 'once'],
  ['rows that change and go', [rows(1, 0, { updates: true, deletes: true })], 'once'],
  ['rows that come and go: by two statements', [rows(1, 5, { deletes: true })], 'anyhow'],
  ['changes in two pieces', [rows(1, 0, { updates: true }), rows(1, 0, { deletes: true })], 'anyhow'],
  ['a TRUNCATE', [{ kind: 'truncate', storageId: 1 }], 'anyhow'],
  ['a row that moves to another key', [{ kind: 'rekey', storageId: 1, oldKey: ['1'], values: ['2'] }], 'anyhow'],
] as const)('%s', (_, steps, how) => {
  expect(writtenBy([...steps, rows(2, 1, null)])).toEqual(
    new Map([
      [1, how],
      [2, 'updated'],
    ]),
  );
});
