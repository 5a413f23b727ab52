import { expect, test } from 'vitest';
import type { SinkColumn } from '../../../src/catalog/sink-model.ts';
import { followColumns } from '../../../src/sinks/postgres/follow-schema.ts';

const column = (name: string, identity: string | null, type = 'text'): SinkColumn => ({
  name,
  type,
  typeOid: 25,
  nullable: true,
  comment: null,
  typeName: type,
  typmod: -1,
  identity,
});

test('a renamed column keeps its values', () => {
  expect(followColumns('t', [column('a', '1:1')], [column('b', '1:1')])).toEqual(['ALTER TABLE t RENAME COLUMN a TO b']);
});

test('dropped and added again under the same name is another column', () => {
  expect(followColumns('t', [column('a', '1:1')], [column('a', '1:2')])).toEqual([
    'ALTER TABLE t DROP COLUMN a',
    'ALTER TABLE t ADD COLUMN a text',
  ]);
});

test('two columns that change names', () => {
  expect(followColumns('t', [column('a', '1:1'), column('b', '1:2')], [column('b', '1:1'), column('a', '1:2')])).toEqual([
    'ALTER TABLE t RENAME COLUMN a TO millrace_renaming_0',
    'ALTER TABLE t RENAME COLUMN b TO millrace_renaming_1',
    'ALTER TABLE t RENAME COLUMN millrace_renaming_0 TO b',
    'ALTER TABLE t RENAME COLUMN millrace_renaming_1 TO a',
  ]);
});

test('columns of views go by their names, and take another type', () => {
  expect(followColumns('t', [column('a', null)], [column('a', null, 'bigint')])).toEqual([
    'ALTER TABLE t ALTER COLUMN a TYPE bigint USING a::text::bigint',
  ]);
});
