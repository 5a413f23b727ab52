/** What SQL text leaves behind in its session, as far as a pool has to know. */
import { describe, expect, it } from 'vitest';
import { sessionEffects } from '../../../../src/wire/pool/pin.ts';

/** Pins by reason, `set x`, `reset x` and `word name` of prepared statements. */
function effects(sql: string): string[] {
  const text = Buffer.from(sql, 'utf8');
  return sessionEffects(text, 0, text.length).map((effect) => {
    if (effect.kind === 'pin') return effect.reason;
    if (effect.kind === 'forget') return 'forget';
    return effect.kind === 'statement' ? `${effect.word} ${effect.name}` : `${effect.kind} ${effect.parameter}`;
  });
}

describe('effects of SQL on its session', () => {
  it.each([
    ['SELECT 1', []],
    ['UPDATE t SET a = 1', []],
    ['BEGIN; SET LOCAL work_mem = 1; COMMIT', []],
    ['SET TRANSACTION READ ONLY', []],
    ['set Work_Mem to 1', ['set work_mem']],
    ["SET SESSION TIME ZONE 'UTC'", ['set timezone']],
    ['SET NAMES latin1', ['set client_encoding']],
    ['RESET DateStyle', ['reset datestyle']],
    ['RESET TIME ZONE', ['reset timezone']],
    ['DISCARD ALL', ['reset all', 'forget']],
    ['DISCARD PLANS', []],
    ['SET work_mem = DEFAULT', ['reset work_mem']],
    ['SET TimeZone TO default', ['reset timezone']],
    ['SET TIME ZONE DEFAULT', ['reset timezone']],
    ['SET NAMES DEFAULT', ['reset client_encoding']],
    ["SET a.default = 'x'", ['set a.default']],
    ['SET ROLE joe', ['set role']],
    ["SELECT set_config('a.b', 'x', true)", []],
    ["SELECT set_config('a.b', 'x', false)", ['set_config']],
    ['CREATE TEMP TABLE t ()', ['temporary object']],
    ['DECLARE c CURSOR WITH HOLD FOR SELECT 1', ['cursor with hold']],
    ['LISTEN a; LOAD b', ['LISTEN', 'LOAD']],
    ["PREPARE TRANSACTION 'x'", []],
    ['PREPARE Plan AS SELECT 1', ['PREPARE', 'prepare plan']],
    ['EXPLAIN EXECUTE "My ""plan"""(1)', ['execute My "plan"']],
    ['DEALLOCATE PREPARE b', ['deallocate b']],
    ['DEALLOCATE /* only */ b', ['deallocate b']],
    ['DEALLOCATE ALL', ['forget']],
  ] as const)('%s', (sql, expected) => {
    expect(effects(sql)).toEqual(expected);
  });

  it('are all seen, not only the last of several', () => {
    expect(effects("SET search_path = a; SET TimeZone = 'UTC'; DEALLOCATE x; DEALLOCATE y")).toEqual([
      'set search_path',
      'set timezone',
      'deallocate x',
      'deallocate y',
    ]);
  });

  it('are seen behind comments', () => {
    for (const comment of ['/* of our app */', '-- of our app\n', '/* /* nested */ ; */ -- two\n', '/* controller:users */\n\t'])
      expect(effects(`${comment}SET work_mem = 1`)).toEqual(['set work_mem']);
    expect(effects('SELECT 1; /* then */ SET work_mem = 1')).toEqual(['set work_mem']);
  });

  it('are not made up from comments', () => {
    expect(effects('/* set, listen and load */ SELECT 1 -- set\n')).toEqual([]);
  });

  it('are not hidden by what only looks like a comment', () => {
    for (const sql of ["SELECT ';/*'", "SELECT ';--'", 'SELECT 1 AS ";/*"', 'SELECT $$;--$$', 'SELECT 1 /* ; -- */', 'SELECT 1 -- ; /*\n'])
      expect(effects(`${sql}; SET work_mem = 1`)).toContain('set work_mem');
  });
});
