/** Whether a text that changed types says how the values came about. */
import { beforeAll, expect, test } from 'vitest';
import { loadPostgresParser } from '../../../src/sql/postgres-parser.ts';
import { columnsWrittenUsing } from '../../../src/sql/rewriting.ts';

beforeAll(loadPostgresParser);

test.each<[string, string[] | null]>([
  ['ALTER TABLE t ALTER a TYPE bigint', []],
  ['ALTER TABLE t ALTER a TYPE bigint, ALTER "B c" TYPE text USING upper("B c")', ['B c']],
  ['BEGIN; INSERT INTO t VALUES (1); ALTER TABLE t ALTER a TYPE bigint; COMMIT', []],
  ['ALTER TABLE t RENAME a TO b; ALTER TABLE t ALTER b TYPE bigint', []],
  ['ALTER TABLE t RENAME a TO b; ALTER TABLE t ALTER b TYPE bigint USING b * 2', null],
  ['DO $$BEGIN ALTER TABLE t ALTER a TYPE bigint; END$$', null],
  ['SELECT migrate(); ALTER TABLE t ALTER a TYPE bigint', null],
  ['ALTER TABLE t ALTER a TYPE', null],
  ['UPDATE t SET a = 1', null],
])('%s: %j', (query, wanted) => {
  const found = columnsWrittenUsing(query);
  expect(found === null ? null : [...found]).toEqual(wanted);
});
