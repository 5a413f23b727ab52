import { describe, expect, test } from 'vitest';
import { mayBeExtended } from '../../../src/sql/gate.ts';

function gate(text: string): boolean {
  // Other messages stand in front of and behind the text in the same chunk.
  const bytes = Buffer.from(`; DROP SOURCE x;${text}\0; DROP SOURCE x`);
  return mayBeExtended(bytes, 16, bytes.length - 16);
}

describe('ordinary SQL is told at once', () => {
  test.each([
    '',
    ' ',
    ';',
    'SELECT 1',
    'select * from source',
    'INSERT INTO t VALUES (1); SELECT 2',
    'BEGIN; UPDATE t SET a = 1; COMMIT',
    'SHOW search_path',
    'SHOW tablesx',
    'SHOW sinksx',
    'ALTER SINKS s',
    'CREATE TABLE sink (a int)',
    'SHOW ALL',
    'CREATE TABLE x (a int)',
    'CREATE TABLE resource (a int)',
    'CREATE TEMP TABLE x (a int)',
    'CREATE INDEX i ON t (a)',
    'CREATE OR REPLACE VIEW v AS SELECT 1',
    'CREATE OR REPLACE MATERIALIZED VIEW v AS SELECT 1',
    'ALTER TABLE t ADD COLUMN source int',
    'ALTER SCHEMA a RENAME TO b',
    'DROP INDEX i',
    'EXPLAIN SELECT 1',
    'EXPLAIN CREATE TABLE migration AS SELECT 1',
    'EXPLAIN CREATE',
    'EXPLAIN',
    'CREATE MIGRATIONS m',
    'SELECT pgtrickl.f()',
    'SELECT gtrickle',
    'DROP FUNCTION f()',
    'CREATED SOURCE',
    'DROP',
    'CREATE ',
    '-- DROP SOURCE x',
    '/* DROP SOURCE x */',
    "SELECT 'drop source x'",
    'DROPé SOURCE x',
    `SELECT '${'x'.repeat(500)}'; SELECT 2`,
    `CREATE TABLE x (a int); ${'CREATE TABLE y (b int); '.repeat(50)}`,
  ])('%s', (text) => {
    expect(gate(text)).toBe(false);
  });
});

describe('what may be extended goes to the parser', () => {
  test.each([
    'CREATE SECRET s AS 1',
    'create\n\tconnection c',
    'CREATE MIGRATION m',
    'alter migration m pause',
    'explain\n create migration m',
    'EXPLAIN /* why */ CREATE MIGRATION m',
    'EXPLAIN CREATE -- why\n MIGRATION m',
    'SHOW MIGRATIONS',
    'CREATE SOURCE s',
    'CREATE TABLE t FROM SOURCE s',
    'create temporary table t from source s',
    'CREATE TABLE t FROM/**/source s',
    'CREATE MATERIALIZED VIEW m AS SELECT 1',
    'ALTER SECRET s AS 1',
    'ALTER CONNECTION c SET (a)',
    'ALTER SCHEMA "a" SWAP WITH b',
    "SELECT pgtrickle.f('x')",
    'select 1 from a join PGTRICKLE.pgt_status() on true',
    `SELECT '${'x'.repeat(500)}', "pgTrickle".f()`,
    'DROP SECRET s',
    'DROP CONNECTION s',
    'DROP SOURCE s',
    'CREATE SINK s FROM v INTO KAFKA CONNECTION c',
    'alter sink s pause',
    'DROP SINK s',
    'SHOW SINKS',
    'SHOW CREATE SINK s',
    'DROP TABLE s',
    'DROP TABLE"s"',
    'DROP VIEW s',
    'DROP MATERIALIZED VIEW s',
    'DROP SCHEMA s',
    'SHOW SOURCES',
    'SHOW TABLES',
    'SHOW MATERIALIZED VIEWS',
    'SHOW CONNECTIONS',
    'SHOW SECRETS',
    'SHOW CREATE TABLE t',
    'VALIDATE CONNECTION c',
    'REFRESH MATERIALIZED VIEW m',
    '  -- x\n /* a /* b */ */ DROP SOURCE s',
    'DROP/* x */SOURCE s',
    'DROP -- x\nSOURCE s',
    ';;DROP SOURCE s',
    "SELECT ';--'; DROP SOURCE s",
    "SELECT ';/*'; DROP SOURCE s",
    `SELECT '${'x'.repeat(500)}'; /* c */ DROP SOURCE s`,
    `${'CREATE TABLE x (a int); '.repeat(50)}CREATE TABLE t FROM SOURCE s`,
  ])('%s', (text) => {
    expect(gate(text)).toBe(true);
  });
});

test.each([
  ['comments that hold semicolons', ';/*'],
  ['line comments in one line', ';--'],
  ['tables', ';create table x '],
  ['swaps that are none', ';alter schema x '],
  ['openings with comments', ';drop/*'],
  ['blanks', ' ; '],
])('a megabyte of %s takes linear time', (_, piece) => {
  const bytes = Buffer.from(`SELECT '${piece.repeat(Math.ceil(1_000_000 / piece.length))}`);
  const begin = performance.now();
  mayBeExtended(bytes, 0, bytes.length);
  expect(performance.now() - begin).toBeLessThan(2000);
});
