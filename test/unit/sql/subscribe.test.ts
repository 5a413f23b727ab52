/** SUBSCRIBE and what belongs to it: text in, AST out. */
import { describe, expect, it } from 'vitest';
import type { ExtendedStatement } from '../../../src/sql/ast.ts';
import { mayBeExtended } from '../../../src/sql/gate.ts';
import { parseStatements } from '../../../src/sql/statements.ts';

function parsed(text: string, subscriptionCursors = false): ExtendedStatement | null | undefined {
  const bytes = Buffer.from(text);
  const [one] = parseStatements(text, { subscriptionCursors });
  if (one?.statement !== null && !subscriptionCursors) expect(mayBeExtended(bytes, 0, bytes.length)).toBe(true);
  return one?.statement;
}

const relation = (name: string, schema: string | null = null): object => ({
  kind: 'relation',
  name: { schema, name, at: expect.any(Number) },
});
const column = (name: string): object => ({ name, at: expect.any(Number) });
const expression = (text: string): object => ({ text, at: expect.any(Number) });

const plain = { type: 'subscribe', envelope: null, orderBy: null, snapshot: null, progress: false, asOf: null, upTo: null };

describe('SUBSCRIBE', () => {
  it.each([
    ['SUBSCRIBE t', { ...plain, target: relation('t') }],
    ['subscribe to a.t', { ...plain, target: relation('t', 'a') }],
    ['SUBSCRIBE TO "to"', { ...plain, target: relation('to') }],
    [
      "SUBSCRIBE (SELECT ')', (1) FROM t /* ) */ WHERE a = $$)$$)",
      { target: { kind: 'query', query: expression("SELECT ')', (1) FROM t /* ) */ WHERE a = $$)$$") } },
    ],
    ['SUBSCRIBE TO (SELECT 1) UP TO 5', { target: { kind: 'query', query: expression('SELECT 1') }, upTo: expression('5') }],
    [
      'SUBSCRIBE USING DURABLE SUBSCRIPTION s.d WITH (PROGRESS)',
      { target: { kind: 'durable', name: { schema: 's', name: 'd', at: expect.any(Number) } }, progress: true },
    ],
    ['SUBSCRIBE t ENVELOPE UPSERT (KEY (a, "B"))', { envelope: { kind: 'upsert', key: [column('a'), column('B')] } }],
    [
      'SUBSCRIBE t ENVELOPE DEBEZIUM (KEY (a)) WITH (SNAPSHOT = false)',
      { envelope: { kind: 'debezium', key: [column('a')] }, snapshot: false },
    ],
    [
      'SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a DESC NULLS LAST, mz_diff WITH (SNAPSHOT false, PROGRESS = true) AS OF 12 UP TO 1 + (2)',
      {
        orderBy: expression('a DESC NULLS LAST, mz_diff'),
        snapshot: false,
        progress: true,
        asOf: { ...expression('12'), atLeast: false },
        upTo: expression('1 + (2)'),
      },
    ],
    [
      'SUBSCRIBE t AS OF AT LEAST millrace.now() - 1000 WITH (SNAPSHOT = false)',
      { asOf: { ...expression('millrace.now() - 1000'), atLeast: true }, snapshot: false },
    ],
    ["SUBSCRIBE t AS OF 'x as of y' WITH (PROGRESS)", { asOf: { ...expression("'x as of y'"), atLeast: false }, progress: true }],
    [
      'COPY (SUBSCRIBE t UP TO 7) TO STDOUT',
      { type: 'copy_subscribe', subscribe: { ...plain, target: relation('t'), upTo: expression('7') }, options: [] },
    ],
    [
      'copy ( subscribe to t ) to stdout with (format csv, header true)',
      { type: 'copy_subscribe', options: [{ name: 'FORMAT' }, { name: 'HEADER' }] },
    ],
    [
      'DECLARE c CURSOR FOR SUBSCRIBE TO t',
      { type: 'declare_subscription', cursor: column('c'), subscribe: { ...plain, target: relation('t') } },
    ],
    [
      'DECLARE c NO SCROLL CURSOR WITHOUT HOLD FOR SUBSCRIBE t WITH (PROGRESS)',
      { type: 'declare_subscription', subscribe: { progress: true } },
    ],
    [
      'CREATE DURABLE SUBSCRIPTION IF NOT EXISTS a.d FOR t',
      { type: 'create_durable_subscription', ifNotExists: true, name: { schema: 'a', name: 'd' }, relation: { name: 't' } },
    ],
    [
      'ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO 17',
      { type: 'acknowledge_durable_subscription', name: { name: 'd' }, upTo: expression('17') },
    ],
    [
      'DROP DURABLE SUBSCRIPTION IF EXISTS d, e',
      { type: 'drop_durable_subscription', ifExists: true, names: [{ name: 'd' }, { name: 'e' }] },
    ],
  ])('%s', (text, statement) => {
    expect(parsed(text)).toMatchObject(statement);
  });

  it.each([
    ['SUBSCRIBE', 'syntax error at end of input'],
    ['SUBSCRIBE t UP TO', 'syntax error at end of input'],
    ['SUBSCRIBE t AS OF 1 AS OF 2', 'conflicting or redundant options'],
    ['SUBSCRIBE t ENVELOPE UPSERT (KEY (a)) WITHIN TIMESTAMP ORDER BY a', 'WITHIN TIMESTAMP ORDER BY cannot be combined with ENVELOPE'],
    ['SUBSCRIBE t ENVELOPE UPSERT', 'syntax error at end of input'],
    ['DECLARE c CURSOR WITH HOLD FOR SUBSCRIBE t', 'a cursor WITH HOLD over SUBSCRIBE is not supported'],
  ])('%s is refused', (text, message) => {
    expect(() => parsed(text)).toThrow(message);
  });

  it.each([
    'COPY t TO STDOUT',
    'COPY (SELECT 1) TO STDOUT',
    'DECLARE c CURSOR FOR SELECT 1',
    'FETCH ALL c',
    'CLOSE c',
    'DROP SUBSCRIPTION s',
    "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p",
  ])('%s belongs to Postgres', (text) => {
    expect(parsed(text)).toBeNull();
    const bytes = Buffer.from(text);
    expect(mayBeExtended(bytes, 0, bytes.length)).toBe(false);
  });

  it.each([
    ['FETCH c', { count: 1 }],
    ['FETCH ALL FROM c', { count: null }],
    ['FETCH 10 c', { count: 10 }],
    ['FETCH FORWARD 10 IN c', { count: 10 }],
    ['FETCH FORWARD ALL c', { count: null }],
    ["FETCH 5 c WITH (timeout='1s')", { count: 5, timeout: '1s' }],
    ["FETCH ALL c WITH (TIMEOUT '0s')", { count: null, timeout: '0s' }],
    ['FETCH NEXT FROM c', { count: 1 }],
    ['FETCH next', { count: 1, cursor: column('next') }],
    ['FETCH FORWARD c', { count: 1 }],
    ["FETCH 5 c WITH (timeout = INTERVAL '1s')", { count: 5, timeout: '1s' }],
    ['FETCH 5 c WITH (timeout = 1.5)', { count: 5, timeout: '1.5' }],
    ['FETCH 5 c WITH (TIMEOUT NULL)', { count: 5, timeout: null }],
    ['MOVE c', { count: 1, move: true }],
    ['MOVE FORWARD 10 IN c', { count: 10, move: true }],
    ["MOVE ALL c WITH (timeout = '0s')", { count: null, timeout: '0s', move: true }],
    ['FETCH BACKWARD 3 FROM c', { count: -1 }],
    ['FETCH BACKWARD ALL c', { count: -1 }],
    ['MOVE PRIOR IN c', { count: -1, move: true }],
    ['FETCH ABSOLUTE 3 c', { count: -1 }],
    ['FETCH first', { count: 1, cursor: column('first') }],
    ['FETCH LAST last', { count: -1, cursor: column('last') }],
  ])('in a session that has such cursors: %s', (text, statement) => {
    expect(parsed(text, true)).toMatchObject({ type: 'fetch_subscription', ...statement });
  });

  it('in a session that has such cursors: CLOSE', () => {
    expect(parsed('CLOSE c', true)).toMatchObject({ type: 'close_subscription', cursor: column('c') });
    expect(parsed('CLOSE ALL', true)).toEqual({ type: 'close_subscription', cursor: null });
  });
});
