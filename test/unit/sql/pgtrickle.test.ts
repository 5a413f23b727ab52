import { beforeAll, describe, expect, test } from 'vitest';
import { pgtrickleUse } from '../../../src/sql/pgtrickle.ts';
import { loadPostgresParser } from '../../../src/sql/postgres-parser.ts';

beforeAll(loadPostgresParser);

describe('a statement uses pgtrickle when it names the schema', () => {
  test.each([
    ['SELECT * FROM pgtrickle.pgt_stream_tables', true],
    ['SELECT count(*) FROM PGTRICKLE.pgt_status()', true],
    ['GRANT USAGE ON SCHEMA pgtrickle TO x', true],
    ["DO $$BEGIN PERFORM pgtrickle.refresh_stream_table('x'); END$$", true],
    ["SELECT 'pgtrickle'", false],
    ['SELECT 1 -- pgtrickle.x', false],
    ['SELECT pgtrickle FROM t', false],
    ['CREATE SCHEMA pgtrickle', false],
    ['SELECT pgtrickle.', false],
  ])('%s: %s', (text, uses) => {
    expect(pgtrickleUse(text).uses).toBe(uses);
  });
});

describe('calls', () => {
  const calls = (text: string): string[] => pgtrickleUse(text).calls.map((call) => `${call.once ? 'once' : 'maybe'} ${call.text}`);

  test.each([
    ['SELECT pgtrickle.validate_query($$ä ) SELECT 1$$)', ['once pgtrickle.validate_query($$ä ) SELECT 1$$)']],
    ["/*ü*/ SELECT * FROM PGTrickle.explain_st('x)') WHERE property = 'a'", ["once PGTrickle.explain_st('x)')"]],
    [
      'SELECT pgtrickle.a(name => $1, q => (1 + 2)::text), "pgtrickle".b(\'x\')',
      ['once pgtrickle.a(name => $1, q => (1 + 2)::text)', 'once "pgtrickle".b(\'x\')'],
    ],
    ['CALL pgtrickle.pause_all()', ['once pgtrickle.pause_all()']],
    ["SELECT pgtrickle.f('a') FROM t", ["maybe pgtrickle.f('a')"]],
    ["WITH c AS (SELECT pgtrickle.f('a')) SELECT * FROM c", ["maybe pgtrickle.f('a')"]],
    ['SELECT pgtrickle.f(a) FROM t', []],
    ["SELECT 'pgtrickle.f(1)'", []],
  ])('%s', (text, found) => {
    expect(calls(text)).toEqual(found);
  });

  test('a call that is the whole statement', () => {
    expect(pgtrickleUse("SELECT pgtrickle.f('a')").single?.text).toBe("pgtrickle.f('a')");
    expect(pgtrickleUse("CALL pgtrickle.f('a')").single?.text).toBe("pgtrickle.f('a')");
    expect(pgtrickleUse("SELECT pgtrickle.f('a') AS x").single).toBeNull();
    expect(pgtrickleUse("SELECT pgtrickle.f('a') LIMIT 1").single).toBeNull();
    expect(pgtrickleUse("SELECT * FROM pgtrickle.f('a')").single).toBeNull();
  });
});
