/** The language of the admin console. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MillraceError } from '../../../../src/errors.ts';
import { type ConsoleCommand, parseCommands, shows } from '../../../../src/wire/admin/commands.ts';

const one = (text: string): ConsoleCommand | undefined => parseCommands(text)[0];

describe('console commands', () => {
  it.each(shows)('SHOW %s', (what) => {
    expect(parseCommands(`show ${what.toLowerCase()};`)).toEqual([{ type: 'show', what }]);
  });

  it.each([
    ['PAUSE', { type: 'worker', tag: 'PAUSE', command: { command: 'pause', database: null } }],
    ['pause Shop', { type: 'worker', tag: 'PAUSE', command: { command: 'pause', database: 'Shop' } }],
    ['PAUSE "odd ""name"', { type: 'worker', tag: 'PAUSE', command: { command: 'pause', database: 'odd "name' } }],
    ['RESUME my-db', { type: 'worker', tag: 'RESUME', command: { command: 'resume', database: 'my-db' } }],
    ['DISABLE größe', { type: 'worker', tag: 'DISABLE', command: { command: 'disable', database: 'größe' } }],
    ['ENABLE a', { type: 'worker', tag: 'ENABLE', command: { command: 'enable', database: 'a' } }],
    ['RECONNECT', { type: 'worker', tag: 'RECONNECT', command: { command: 'reconnect', database: null } }],
    ['KILL a', { type: 'worker', tag: 'KILL', command: { command: 'kill', database: 'a' } }],
    ['KILL_CLIENT c12_3', { type: 'worker', tag: 'KILL_CLIENT', command: { command: 'kill_client', id: 'c12_3' } }],
    ["KILL_CLIENT 'c12_3'", { type: 'worker', tag: 'KILL_CLIENT', command: { command: 'kill_client', id: 'c12_3' } }],
    ['WAIT_CLOSE', { type: 'worker', tag: 'WAIT_CLOSE', command: { command: 'wait_close', database: null } }],
    ['RELOAD -- now', { type: 'reload' }],
    ['SHUTDOWN', { type: 'shutdown', mode: 'now' }],
    ['shutdown wait_for_clients', { type: 'shutdown', mode: 'wait_for_clients' }],
    ['SHUTDOWN WAIT_FOR_SERVERS', { type: 'shutdown', mode: 'wait_for_servers' }],
    ['SET Query_Timeout=1.5', { type: 'set', name: 'query_timeout', value: '1.5' }],
    ["SET pool_mode TO 'transaction'", { type: 'set', name: 'pool_mode', value: 'transaction' }],
    ['SET admin_users = a, b', { type: 'set', name: 'admin_users', value: 'a,b' }],
    ["SET auth_query = 'SELECT 1; x'", { type: 'set', name: 'auth_query', value: 'SELECT 1; x' }],
    ['SET extra_float_digits = 3', { type: 'nothing', tag: 'SET' }],
    ["SET SESSION application_name TO 'x'", { type: 'nothing', tag: 'SET' }],
    ['SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY', { type: 'nothing', tag: 'SET' }],
    ['SET TIME ZONE UTC', { type: 'nothing', tag: 'SET' }],
    ['SHOW client_encoding', { type: 'variable', name: 'client_encoding' }],
    ['SHOW TRANSACTION ISOLATION LEVEL', { type: 'variable', name: 'transaction_isolation' }],
    ['BEGIN', { type: 'nothing', tag: 'BEGIN' }],
    ['start transaction isolation level read committed', { type: 'nothing', tag: 'START TRANSACTION' }],
    ['COMMIT', { type: 'nothing', tag: 'COMMIT' }],
    ['DISCARD ALL', { type: 'nothing', tag: 'DISCARD ALL' }],
    ['SELECT 1', { type: 'select', column: '?column?', value: '1', kind: 'int4' }],
    ["select 'a b' AS x", { type: 'select', column: 'x', value: 'a b', kind: 'text' }],
    ['SELECT pg_catalog.version()', { type: 'select', column: 'version', value: 'version()', kind: 'text' }],
  ] as const)('%s', (text, expected) => {
    expect(one(text)).toEqual(expected);
  });

  it('come several in a text', () => {
    expect(parseCommands(' ;; SHOW POOLS; /* x; */ PAUSE a;')).toHaveLength(2);
    expect(parseCommands(' -- nothing')).toEqual([]);
  });

  it.each([
    'FOO bar',
    'SHOW',
    'SHOW nope',
    'SHOW POOLS now',
    'PAUSE a b',
    'DISABLE',
    'RELOAD x',
    'KILL_CLIENT',
    'SHUTDOWN now',
    'SET x',
    "'",
    'SELECT * FROM t',
    'SUSPEND',
    '"x',
    'é§',
  ])('%s is refused with a hint', (text) => {
    let fields: MillraceError['fields'] | undefined;
    try {
      parseCommands(`SHOW POOLS; ${text}`);
    } catch (error) {
      if (error instanceof MillraceError) fields = error.fields;
    }
    expect(fields).toMatchObject({ code: '42601', hint: 'SHOW HELP' });
  });

  it('never fails otherwise', () => {
    const word = fc.constantFrom(
      'SHOW',
      'PAUSE',
      'SET',
      'SELECT',
      'a',
      '"b"',
      "'c'",
      ';',
      '=',
      '(',
      ')',
      '1',
      '--',
      '/*',
      '$1',
      'KILL_CLIENT',
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.array(word).map((words) => words.join(' ')),
        ),
        (text) => {
          try {
            parseCommands(text);
          } catch (error) {
            expect(error).toBeInstanceOf(MillraceError);
          }
        },
      ),
      { numRuns: 2_000 },
    );
  });
});
