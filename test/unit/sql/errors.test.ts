import { beforeAll, describe, expect, test } from 'vitest';
import { type ErrorFields, MillraceError } from '../../../src/errors.ts';
import { loadPostgresParser, parseSql } from '../../../src/sql/postgres-parser.ts';
import { parseStatements } from '../../../src/sql/statements.ts';

function errorOf(run: () => unknown): ErrorFields {
  try {
    run();
  } catch (error) {
    if (error instanceof MillraceError) return error.fields;
    throw error;
  }
  throw new Error('no error');
}

beforeAll(loadPostgresParser);

describe('syntax errors read as those of Postgres', () => {
  // Ours, and a statement of Postgres that is wrong in the same place in the same way.
  test.each([
    ['CREATE SECRET', 'CREATE TABLE'],
    ['CREATE SECRET ', 'CREATE TABLE '],
    ['CREATE SECRET; SELECT 1', 'CREATE TABLE; SELECT 1'],
    ['CREATE SECRET -- c\n  ;', 'CREATE TABLE -- c\n  ;'],
    ["CREATE SECRET select AS 'x'", "CREATE TABLE select AS 'x'"],
    ["CREATE SECRET left AS 'x'", "CREATE TABLE left AS 'x'"],
    ["CREATE SECRET 'x'", "CREATE TABLE 'x'"],
    ['CREATE SECRET $$x$$', 'CREATE TABLE $$x$$'],
    ["CREATE SECRET E'x'", "CREATE TABLE E'x'"],
    ['CREATE SECRET 1.5', 'CREATE TABLE 1.5'],
    ['CREATE SECRET 12ab', 'CREATE TABLE 12ab'],
    ['CREATE SECRET $1', 'CREATE TABLE $1'],
    ['CREATE SECRET <>', 'CREATE TABLE <>'],
    ['CREATE SECRET =>', 'CREATE TABLE =>'],
    ['CREATE SECRET ::', 'CREATE TABLE ::'],
    ['CREATE SECRET @-- x', 'CREATE TABLE @-- x'],
    ['CREATE SECRET ""', 'CREATE TABLE ""'],
    ['CREATE SECRET "abc', 'CREATE TABLE "abc'],
    ['CREATE SECRET /* abc', 'CREATE TABLE /* abc'],
    ['CREATE SECRET $q$ abc', 'CREATE TABLE $q$ abc'],
    ['CREATE SECRET a..b', 'CREATE TABLE a..b'],
    ['DROP SOURCE é😊 é', 'DROP TABLE é😊 é'],
    ['DROP SOURCE', 'DROP TABLE'],
    ['DROP SOURCE a b', 'DROP TABLE a b'],
    ['DROP SOURCE a, ', 'DROP TABLE a, '],
    ['DROP SOURCE a,, b', 'DROP TABLE a,, b'],
    ['DROP SOURCE IF a', 'DROP TABLE IF a'],
    ['DROP SOURCE IF NOT EXISTS a', 'DROP TABLE IF NOT EXISTS a'],
    ['DROP SOURCE a CASCADE RESTRICT', 'DROP TABLE a CASCADE RESTRICT'],
    ['DROP SOURCE "a" "b"', 'DROP TABLE "a" "b"'],
    ['DROP SOURCE a, order', 'DROP TABLE a, order'],
    ['SELECT 1; DROP SOURCE )', 'SELECT 1; DROP TABLE )'],
    ['ALTER SCHEMA a SWAP WITH', 'ALTER SCHEMA a RENAME TO'],
    ['ALTER SCHEMA a SWAP WITH b.c', 'ALTER SCHEMA a RENAME TO b.c'],
    ['ALTER SCHEMA a SWAP WITH user', 'ALTER SCHEMA a RENAME TO user'],
    ['CREATE TABLE IF NOT EXISTS t FROM SOURCE', 'CREATE TABLE IF NOT EXISTS t AS SELECT FROM'],
  ])('%s', (ours, theirs) => {
    const mine = errorOf(() => parseStatements(ours));
    const postgres = errorOf(() => parseSql(theirs));
    expect(mine.message).toBe(postgres.message);
    expect(mine.code).toBe('42601');
    const tail = (text: string, position: number | undefined): string => [...text].slice((position ?? 0) - 1).join('');
    // Same distance from the end: the texts differ in length only before the error.
    expect(tail(ours, mine.position)).toHaveLength(tail(theirs, postgres.position).length);
  });

  test.each<[string, string, number]>([
    ["CREATE SECRET s 'x'", `syntax error at or near "'x'"`, 17],
    ['CREATE SECRET s AS x', 'syntax error at or near "x"', 20],
    ["CREATE SECRET s AS 'abc; SELECT 1", `unterminated quoted string at or near "'abc; SELECT 1"`, 20],
    ["CREATE SECRET s AS 'a' || 'b'", 'syntax error at or near "||"', 24],
    ["CREATE SECRET s AS E'\\u12'", 'invalid Unicode escape', 21],
    ["CREATE SECRET s AS E'\\xff'", 'invalid byte sequence for encoding "UTF8"', 21],
    ["CREATE SECRET s AS decode('ff', 'base7')", 'unrecognized encoding: "base7"', 20],
    ["CREATE SECRET s AS decode('f', 'hex')", 'invalid hexadecimal data: odd number of digits', 20],
    ["CREATE SECRET s AS decode('a!', 'base64')", 'invalid symbol "!" found while decoding base64 sequence', 20],
    ["CREATE SECRET s AS decode('AA==', 'base64')", 'invalid byte sequence for encoding "UTF8": 0x00', 20],
    ['CREATE SECRET $1a', 'trailing junk after parameter at or near "$1a"', 15],
    ['CREATE CONNECTION c', 'syntax error at end of input', 20],
    ['CREATE CONNECTION c TO', 'syntax error at end of input', 23],
    ['CREATE CONNECTION c TO ORACLE (HOST 1)', 'syntax error at or near "ORACLE"', 24],
    ['CREATE CONNECTION c TO POSTGRES ()', 'syntax error at or near ")"', 34],
    ["CREATE CONNECTION c TO POSTGRES (HOST 'a' PORT 1)", 'syntax error at or near "PORT"', 43],
    ["CREATE CONNECTION c TO POSTGRES (HOST 'a',)", 'syntax error at or near ")"', 43],
    ['CREATE CONNECTION c TO POSTGRES (HOST = )', 'syntax error at or near ")"', 41],
    ['CREATE CONNECTION c TO POSTGRES (HOST select)', 'syntax error at or near "select"', 39],
    ["CREATE CONNECTION c TO POSTGRES (HOST => 'a')", 'syntax error at or near "=>"', 39],
    ["CREATE CONNECTION c TO POSTGRES (HOST 'a'", 'syntax error at end of input', 42],
    ["CREATE CONNECTION c TO POSTGRES (HOST 'a') WITH (VALIDATE 3)", 'syntax error at or near "3"', 59],
    ['CREATE CONNECTION c TO POSTGRES (HOST (a, b))', 'syntax error at or near "a"', 40],
    ["CREATE SINK s FROM v INTO KAFKA CONNECTION c (TOPIC 't'", 'syntax error at end of input', 56],
    ["CREATE SINK s FROM v INTO KAFKA CONNECTION c (TOPIC 't') KEY (a) FORMAT XML", 'syntax error at or near "XML"', 73],
    ["CREATE SINK s FROM v INTO KAFKA CONNECTION c (TOPIC 't', PARTITION BY f(a) KEY (a)", 'syntax error at end of input', 83],
    ["CREATE SINK s INTO KAFKA CONNECTION c (TOPIC 't')", 'syntax error at or near "INTO"', 15],
    ['ALTER SINK s SET FROM v WITH (BACKFILL = everything)', 'syntax error at or near "everything"', 42],
    ["ALTER SINK s SET FROM v WITH (BACKFILL 'x')", 'invalid BACKFILL: x (none, snapshot or diff)', 40],
    ['ALTER SINK s SET FROM v WITH (DRY RUN, DRY RUN)', 'conflicting or redundant options', 40],
    ['ALTER SINK s', 'syntax error at end of input', 13],
    ['ALTER CONNECTION c', 'syntax error at end of input', 19],
    ['ALTER CONNECTION c SET HOST a', 'syntax error at or near "HOST"', 24],
    ['VALIDATE CONNECTION', 'syntax error at end of input', 20],
    ['CREATE SOURCE s FROM POSTGRES CONNECTION c', 'syntax error at end of input', 43],
    ['CREATE SOURCE s FROM POSTGRES (PUBLICATION p)', 'syntax error at or near "("', 31],
    ['CREATE SOURCE s FROM POSTGRES CONNECTION c (SLOT p)', 'syntax error at or near "SLOT"', 45],
    ['CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION p, SLOT q)', 'syntax error at or near "SLOT"', 60],
    ['CREATE TABLE t FROM SOURCE s REFERENCE a', 'syntax error at or near "REFERENCE"', 30],
    ['CREATE TABLE t FROM SOURCE s (REFERENCE)', 'syntax error at or near ")"', 40],
    ['CREATE TABLE t FROM SOURCE s (REFERENCE a.b.c.d)', 'improper qualified name (too many dotted names): a.b.c.d', 41],
    ['CREATE TABLE t FROM SOURCE s WITH (FOO)', 'syntax error at or near "FOO"', 36],
    ['CREATE TABLE t FROM SOURCE s WITH (TEXT COLUMNS ())', 'syntax error at or near ")"', 50],
    ['CREATE TABLE t FROM SOURCE s WITH (TEXT COLUMNS (a), TEXT COLUMNS (b))', 'conflicting or redundant options', 54],
    ['CREATE TABLE select FROM SOURCE s', 'syntax error at or near "select"', 14],
    ['SHOW SOURCES x', 'syntax error at or near "x"', 14],
    ['SHOW TABLES LIKE x', 'syntax error at or near "x"', 18],
    ["SHOW TABLES WHERE name = 'x", `unterminated quoted string at or near "'x"`, 26],
    ['SHOW TABLES WHERE', 'syntax error at end of input', 18],
    ['SHOW CREATE SOURCE', 'syntax error at end of input', 19],
    ["SELECT '😊'; DROP SOURCE , x", 'syntax error at or near ","', 25],
  ])('%s', (text, message, position) => {
    expect(errorOf(() => parseStatements(text))).toMatchObject({ message, position });
  });
});

describe('what is understood but not supported says so', () => {
  test.each([
    ["CREATE CONNECTION c TO KAFKA (BROKER 'x:1' USING SSH TUNNEL t)", 'brokers behind SSH TUNNEL or AWS PRIVATELINK are not supported'],
    ["CREATE SINK s IN CLUSTER x FROM v INTO KAFKA CONNECTION c (TOPIC 't')", 'IN CLUSTER is not supported'],
    ["CREATE SINK s FROM v INTO KAFKA CONNECTION c (TOPIC 't') FORMAT JSON ARRAY", 'FORMAT JSON ARRAY is not supported in sinks'],
    ["CREATE SINK s FROM v INTO KAFKA CONNECTION c (TOPIC 't') ENVELOPE NONE", 'ENVELOPE NONE is not supported in sinks'],
    ["CREATE SINK s FROM v INTO KAFKA CONNECTION c (TOPIC 't') MODE APPEND", 'MODE is not supported in sinks, use ENVELOPE instead'],
    ["CREATE SINK s FROM v INTO ICEBERG CATALOG CONNECTION c (TABLE 't')", 'sinks into ICEBERG CATALOG are not supported'],
    ['ALTER SINK s SET (SNAPSHOT = false)', 'ALTER SINK .. SET (options) is not supported'],
    ["CREATE CONNECTION c FOR MYSQL (HOST 'x')", 'connections to MYSQL are not supported'],
    ['CREATE SOURCE s FROM KAFKA CONNECTION c', 'sources from KAFKA are not supported'],
    [
      'CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION p) FOR ALL TABLES',
      'FOR ALL TABLES is not supported; use CREATE TABLE .. FROM SOURCE instead',
    ],
    [
      'CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION p) FOR TABLES (a)',
      'FOR TABLES is not supported; use CREATE TABLE .. FROM SOURCE instead',
    ],
    [
      'CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION p, TEXT COLUMNS (a.b))',
      'TEXT COLUMNS is not supported in CREATE SOURCE; use CREATE TABLE .. FROM SOURCE .. WITH (TEXT COLUMNS (..)) instead',
    ],
    ['CREATE SOURCE s IN CLUSTER c FROM POSTGRES CONNECTION c (PUBLICATION p)', 'IN CLUSTER is not supported'],
    [
      "CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION p) WITH (TIMESTAMP INTERVAL '1s')",
      'option TIMESTAMP INTERVAL is not supported',
    ],
    ['CREATE TEMP TABLE t FROM SOURCE s', 'temporary tables FROM SOURCE are not supported'],
    ['CREATE LOCAL TEMPORARY TABLE t FROM SOURCE s', 'temporary tables FROM SOURCE are not supported'],
    ['CREATE UNLOGGED TABLE t FROM SOURCE s', 'unlogged tables FROM SOURCE are not supported'],
    ['CREATE TABLE t (a, b) FROM SOURCE s', 'column definitions cannot be specified in CREATE TABLE .. FROM SOURCE'],
    ["CREATE TABLE t FROM SOURCE s WITH (RETAIN HISTORY FOR '1 day')", 'option RETAIN HISTORY is not supported'],
    ['ALTER SECRET s RENAME TO t', 'RENAME TO is not supported for this kind of object'],
    ['ALTER CONNECTION c OWNER TO r', 'OWNER TO is not supported for this kind of object'],
    ['ALTER CONNECTION c ROTATE KEYS', 'ROTATE KEYS is not supported'],
    ['DROP SOURCE a.b.c', 'names of more than two parts are not supported here, use schema.name'],
  ])('%s', (text, message) => {
    expect(errorOf(() => parseStatements(text))).toMatchObject({ code: '0A000', message, position: expect.any(Number) });
  });
});

test('comments nested without end are an error, not a crash', () => {
  const comment = `${'/*'.repeat(200_000)}${'*/'.repeat(200_000)}`;
  expect(errorOf(() => parseStatements(`DROP SOURCE ${comment} a`)).code).toBe('42601');
});
