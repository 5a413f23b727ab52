import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type SessionEffect, sessionEffects } from '../../../../src/wire/pool/pin.ts';

function shown(effect: SessionEffect): string {
  switch (effect.kind) {
    case 'pin':
      return effect.reason;
    case 'set':
    case 'reset':
      return `${effect.kind} ${effect.parameter}`;
    case 'forget':
      return 'forget';
    case 'statement':
      return `${effect.word} ${effect.name}`;
  }
}

function effect(sql: string): string {
  const found = sessionEffects(Buffer.from(sql), 0, Buffer.byteLength(sql)).map(shown);
  return [...new Set(found)].join('; ');
}

describe('what a statement leaves in its session', () => {
  it.each([
    ['LISTEN x', 'LISTEN'],
    ['select 1; listen x', 'LISTEN'],
    ['/* who */ LISTEN x', 'LISTEN'],
    ['-- who\nLISTEN x', 'LISTEN'],
    ['/* a /* nested */ one */ -- and\r\n  LISTEN x', 'LISTEN'],
    ['/*/ not closed yet */ LISTEN x', 'LISTEN'],
    ['SELECT 1; -- then\nLISTEN x', 'LISTEN'],
    ['SELECT 1; /* then */ LISTEN x', 'LISTEN'],
    ['SELECT 1;/*/ a */ LISTEN x', 'LISTEN'],
    ["SELECT '; -- '; LISTEN x", 'LISTEN'],
    ["SELECT ';/*'; LISTEN x", 'LISTEN'],
    ["SELECT ';/* /*'; LISTEN x", 'LISTEN'],
    ['CREATE TEMPORARY TABLE t (a int)', 'temporary object'],
    ['SELECT * INTO TEMP t FROM u', 'temporary object'],
    ['WITH x AS (SELECT pg_try_advisory_lock(1)) TABLE x', 'advisory lock'],
    ['SELECT pg_catalog.set_config($1, $2, false)', 'set_config'],
    ["SELECT set_config('a.b', 'c', true)", ''],
    ['SELECT pg_advisory_xact_lock(1)', ''],
    ["SET work_mem = '1MB'", 'set work_mem'],
    ['set session time zone 0', 'set timezone'],
    ['SET LOCAL work_mem = 1', ''],
    ['SET TRANSACTION READ ONLY', ''],
    ['/* SET x = 1 */ SELECT 1', ''],
    ['-- prepare the load; listen\nSELECT 1', ''],
    ['UPDATE t SET a = 1', ''],
    ['DEALLOCATE PREPARE "A b"', 'deallocate A b'],
    ["PREPARE TRANSACTION 'x'", ''],
    ['PREPARE x AS SELECT 1', 'PREPARE; prepare x'],
    ['BEGIN', ''],
    ['DISCARD ALL', 'reset all; forget'],
    ['', ''],
    ['--', ''],
    ['/*', ''],
  ])('%s', (sql, expected) => {
    expect(effect(sql)).toBe(expected);
  });

  it('a comment in front of a statement, whatever it holds, hides nothing and adds nothing', () => {
    const inside = fc.string({ unit: fc.constantFrom('a', ' ', ';', "'", '-', '*', 'SET x = 1', 'listen', '"', '$$') });
    const comment = fc.oneof(
      inside.map((text) => `/*${text.replaceAll('*', ' ').replaceAll('/', ' ')}*/`),
      inside.map((text) => `--${text}\n`),
    );
    fc.assert(
      fc.property(fc.array(comment), (comments) => {
        expect(effect(`${comments.join(' ')} LISTEN x`)).toBe('LISTEN');
        expect(effect(`${comments.join(' ')} SELECT 1`)).toBe('');
      }),
    );
  });

  it('a string in front of a statement, whatever it holds, hides nothing', () => {
    const inside = fc.string({ unit: fc.constantFrom('a', ' ', ';', '/*', '--', '*/', '*', '/', '\n', 'b c') });
    fc.assert(
      fc.property(inside, (text) => {
        expect(effect(`SELECT '${text}'; LISTEN x`)).toContain('LISTEN');
      }),
    );
  });
});
