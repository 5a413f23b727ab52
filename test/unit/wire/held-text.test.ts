/** Which requests wait while tables change: by their text, where there is one. */
import { describe, expect, it } from 'vitest';
import { bind, describe as describeMessage, execute, parse, query, sync } from '../../../src/wire/encode.ts';
import { heldText, mayTouch } from '../../../src/wire/held-text.ts';

const none = (): undefined => undefined;
const narrow = heldText(['users', 'user emails', 'ü$', 'a"b'], false);
const wide = heldText(['users'], true);
const says = (sql: string, held = narrow): boolean => mayTouch(query(sql, 'utf8'), held, none);

describe('a simple query', () => {
  it.each([
    'SELECT * FROM users',
    'select * from PUBLIC.Users;',
    'SELECT 1; UPDATE "users" SET a = 1',
    'COPY users FROM stdin',
    'SELECT * FROM "user emails"',
    'SELECT * FROM "Ü$", x."ü$"',
    'SELECT * FROM "a""b"',
    "SELECT 'users'",
  ])('waits: %s', (sql) => {
    expect(says(sql)).toBe(true);
  });

  it.each([
    'SELECT * FROM users_archive',
    'SELECT * FROM myusers',
    'SELECT * FROM ausersä, üusers',
    'SELECT * FROM user_emails',
    'BEGIN',
    '',
  ])('goes on: %s', (sql) => {
    expect(says(sql)).toBe(false);
  });

  it.each([
    'BEGIN',
    'begin isolation level serializable',
    'START TRANSACTION',
    'EXECUTE p(1)',
    'CALL tidy()',
    'DO $$ BEGIN END $$',
    'SET x = 1; BEGIN',
  ])('does not say what it will touch: %s', (sql) => {
    expect(says(sql, wide)).toBe(true);
    expect(says(sql, narrow)).toBe(false);
  });

  it.each(['SELECT 1', 'COMMIT', 'ROLLBACK', "SET search_path = 'x'", 'SELECT * FROM orders'])('goes on for certain: %s', (sql) => {
    expect(says(sql, wide)).toBe(false);
  });
});

describe('the extended protocol', () => {
  const batch = (name: string, sql: string): Buffer =>
    Buffer.concat([parse(name, sql, 'utf8'), bind('', name, [], 'utf8'), describeMessage('P', '', 'utf8'), execute('', 'utf8'), sync]);

  it('is judged by the text that it brings along', () => {
    expect(mayTouch(batch('', 'UPDATE users SET a = $1'), wide, none)).toBe(true);
    expect(mayTouch(batch('s1', 'UPDATE orders SET a = $1'), wide, none)).toBe(false);
    expect(mayTouch(Buffer.concat([batch('s1', 'SELECT 1'), batch('s2', 'TABLE users')]), narrow, none)).toBe(true);
  });

  it('waits with a statement that was prepared earlier, where its text is not known, for a short time', () => {
    const again = Buffer.concat([bind('', 's1', [], 'utf8'), execute('', 'utf8'), sync]);
    expect(mayTouch(again, wide, none)).toBe(true);
    expect(mayTouch(again, narrow, none)).toBe(false);
    expect(mayTouch(Buffer.concat([describeMessage('S', 's1', 'utf8'), sync]), wide, none)).toBe(true);
  });

  it('is judged by the text of a statement that was prepared earlier, where that is known', () => {
    const again = Buffer.concat([bind('', 's1', [], 'utf8'), execute('', 'utf8'), sync]);
    expect(mayTouch(again, wide, (name) => (name === 's1' ? 'SELECT * FROM orders' : undefined))).toBe(false);
    expect(mayTouch(again, narrow, (name) => (name === 's1' ? 'SELECT * FROM users' : undefined))).toBe(true);
  });

  it('ends in good order: Sync, Flush, Close and Terminate do not wait', () => {
    expect(mayTouch(sync, wide, none)).toBe(false);
    expect(mayTouch(Buffer.from([0x58, 0, 0, 0, 4]), wide, none)).toBe(false);
  });
});

describe('bytes that cannot be judged', () => {
  it('wait when they are the beginning of a statement, wherever it is cut', () => {
    const whole = Buffer.concat([
      query('SELECT 1', 'utf8'),
      parse('s', 'SELECT 2', 'utf8'),
      bind('', 's', [], 'utf8'),
      execute('', 'utf8'),
      sync,
    ]);
    for (let length = 1; length < whole.length; length++) expect(typeof mayTouch(whole.subarray(0, length), wide, none)).toBe('boolean');
    expect(mayTouch(whole.subarray(0, 8), narrow, none)).toBe(true);
    expect(mayTouch(whole, wide, none)).toBe(false);
  });

  it('go on when they are no message', () => {
    expect(mayTouch(Buffer.from([0x51, 0, 0, 0, 0, 1, 2]), wide, none)).toBe(false);
    expect(mayTouch(Buffer.from([0x51, 0xff, 0xff, 0xff, 0xff, 1, 2]), wide, none)).toBe(false);
  });
});
