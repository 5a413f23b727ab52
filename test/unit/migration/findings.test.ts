/** What is found about a migration, from facts made by hand: a table in which nothing is wrong, and one thing changed. */
import { describe, expect, test } from 'vitest';
import type { Examined, Probe } from '../../../src/migration/examined.ts';
import { explainLines } from '../../../src/migration/explain.ts';
import type { Surroundings, TableFacts } from '../../../src/migration/facts.ts';
import { findings, shownAge } from '../../../src/migration/findings.ts';
import { type AlterDefinition, defaultOptions, type MoveDefinition, type SplitDefinition } from '../../../src/migration/model.ts';
import { isMetadataOnly } from '../../../src/migration/type-findings.ts';

const column = (attnum: number, name: string, type: string, more = {}) => ({
  ...{ attnum, name, type, notNull: false, identity: null, generated: null, defaultText: null },
  ...more,
});

const table: TableFacts = {
  source: {
    ...{ oid: 1, schema: 'public', name: 'users', partitioned: false, owner: { oid: 10, name: 'alice' }, key: ['id'] },
    columns: [
      column(1, 'id', 'integer', { notNull: true }),
      column(2, 'name', 'text'),
      column(3, 'email', 'text'),
      column(4, 'age', 'integer'),
    ],
  },
  ...{
    kind: 'r',
    persistence: 'p',
    isSystem: false,
    isPartition: false,
    partitionKey: [],
    partitionObjects: [],
    children: [],
    parents: [],
    rows: 1000,
    bytes: 80_000,
    indexBytes: 20_000,
  },
  ...{
    toastBytes: 0,
    identity: 'd',
    identityColumns: [],
    rowSecurity: false,
    policies: [],
    rules: [],
    triggers: [],
    generated: [],
    checks: [],
  },
  ...{ foreignKeysOut: [], foreignKeysIn: [], indexes: [], statistics: [], dependents: [], publications: [] },
};

const surroundings: Surroundings = {
  ...{ walLevel: 'logical', slots: { used: 1, max: 10 }, walSenders: { used: 1, max: 10 }, databaseBytes: 1e6, tablespace: 'pg_default' },
  engine: { name: 'millrace', superuser: false, replication: true, owns: true },
  caller: { name: 'alice', superuser: false, owns: true, createInDatabase: true, createInTarget: true },
  ...{ database: 'app', targetExists: false, schemasTaken: [], migrations: [], readers: [], transactions: [] },
};

const move: MoveDefinition = {
  ...{ kind: 'move', columns: ['email'], target: { schema: 'public', name: 'emails' }, key: [{ column: 'id', as: 'user_id' }] },
};
const alter: AlterDefinition = { kind: 'alter', columns: [{ column: 'age', type: 'bigint', up: null, down: null }] };
const split: SplitDefinition = {
  ...{ kind: 'split', column: 'name', down: 'first', into: [{ name: 'first', type: 'text', up: 'name' }] },
};

interface Changes extends Partial<Omit<Examined, 'facts'>> {
  readonly table?: Partial<TableFacts>;
  readonly around?: Partial<Surroundings>;
}

function examined({ table: tableChanges, around, ...rest }: Changes): Examined {
  return {
    ...{
      name: 'm',
      definition: move,
      probes: [],
      roundTrip: null,
      options: { ...defaultOptions, newVersion: 'm_new', oldVersion: 'm_old' },
    },
    facts: { table: { ...table, ...tableChanges }, surroundings: { ...surroundings, ...around } },
    ...rest,
  };
}

/** Severity and code, infos left out. */
const codes = (changes: Changes): string[] =>
  findings(examined(changes)).flatMap(({ severity, code }) => (severity === 'info' ? [] : [`${severity} ${code}`]));
const first = (changes: Changes) => findings(examined(changes))[0];

test('nothing speaks against a table in which nothing is wrong', () => {
  for (const definition of [move, alter, split]) expect(codes({ definition })).toEqual([]);
});

describe('the server', () => {
  test.each([
    [{ walLevel: 'replica' }, 'wal_level', '55000'],
    [{ slots: { used: 10, max: 10 } }, 'no_free_slot', '53400'],
    [{ walSenders: { used: 10, max: 10 } }, 'no_free_wal_sender', '53300'],
    [{ engine: { ...surroundings.engine, owns: false } }, 'engine_rights', '42501'],
    [{ engine: { ...surroundings.engine, replication: false } }, 'engine_rights', '42501'],
    [{ caller: { ...surroundings.caller, owns: false } }, 'not_owner', '42501'],
    [{ caller: { ...surroundings.caller, createInDatabase: false } }, 'no_create_on_database', '42501'],
    [{ caller: { ...surroundings.caller, createInTarget: false } }, 'no_create_on_schema', '42501'],
    [{ caller: { ...surroundings.caller, createInTarget: null } }, 'no_target_schema', '3F000'],
    [{ targetExists: true }, 'target_exists', '42P07'],
    [{ schemasTaken: ['m_old'] }, 'version_exists', '42P06'],
    [{ migrations: ['other'] }, 'migration_under_way', '55006'],
  ] as const)('%j: %s', (around, code, sqlstate) => {
    expect(first({ around })).toMatchObject({ severity: 'blocker', code, sqlstate });
  });

  test('a superuser of its own needs neither membership nor REPLICATION', () => {
    expect(codes({ around: { engine: { name: 'x', superuser: true, replication: false, owns: false } } })).toEqual([]);
  });

  test('both versions of one name', () => {
    expect(codes({ options: { ...defaultOptions, newVersion: 'v', oldVersion: 'v' } })).toEqual(['blocker version_exists']);
  });
});

describe('the table', () => {
  test.each([
    [{ kind: 'f' }, 'not_a_table'],
    [{ persistence: 't' }, 'temporary_table'],
    [{ persistence: 'u' }, 'unlogged_table'],
    [{ isSystem: true }, 'system_table'],
    [{ isPartition: true, parents: ['p'] }, 'partition'],
    [{ children: ['c'] }, 'inheritance'],
    [{ source: { ...table.source, key: [] } }, 'no_primary_key'],
    [{ identity: 'n' }, 'replica_identity'],
    [{ identity: 'i', identityColumns: ['email'] }, 'replica_identity'],
  ] as const)('%j: %s', (changes, code) => {
    expect(first({ table: changes })).toMatchObject({ severity: 'blocker', code });
  });

  test('a partitioned one can be migrated, but for its partition key and what a partition has for itself', () => {
    const partitioned = { kind: 'p', source: { ...table.source, partitioned: true } };
    const odd = { ...partitioned, partitionKey: ['id', 'age'], partitionObjects: ['index i of users_1'] };
    expect(codes({ table: odd })).toEqual([]);
    expect(codes({ table: partitioned, definition: alter })).toEqual([]);
    expect(codes({ table: odd, definition: alter })).toEqual(['blocker partition_key', 'blocker partition_object']);
  });

  test('a replica identity that holds the key will do', () => {
    expect(codes({ table: { identity: 'i', identityColumns: ['id', 'email'] } })).toEqual([]);
    expect(codes({ table: { identity: 'f' } })).toEqual([]);
  });
});

describe('who uses the table', () => {
  test('indexes and constraints go along while their columns stay together', () => {
    const index = (columns: string[]) => ({ name: 'i', columns, unique: false, primary: false, exclusion: false, valid: true });
    expect(codes({ table: { indexes: [index(['email']), index(['id', 'email']), index(['name', 'age'])] } })).toEqual([]);
    expect(codes({ table: { indexes: [index(['name', 'email'])] } })).toEqual(['blocker index']);
    expect(codes({ table: { indexes: [index(['name'])] }, definition: split })).toEqual(['warning index']);
    expect(codes({ table: { indexes: [{ ...index(['name']), unique: true }] }, definition: split })).toEqual(['blocker index']);
  });

  test('what Millrace keeps from it: in the way of a new shape always, of a move when it reads a moved column', () => {
    const readers = (columns: string[]) => ({ around: { readers: [{ name: 'public.st', columns }] } });
    expect(codes(readers(['name']))).toEqual([]);
    expect(codes(readers(['email']))).toEqual(['blocker live_reader']);
    expect(codes({ ...readers(['name']), definition: alter })).toEqual(['blocker live_reader']);
  });

  test('transactions that are open are named', () => {
    const open = { pid: 5, gid: null, user: 'bob', query: 'SELECT 1', ageMs: 65_000, onTable: true };
    const prepared = { pid: null, gid: 'g', user: 'bob', query: null, ageMs: 3_600_000 * 30, onTable: false };
    expect(findings(examined({ around: { transactions: [open, prepared] } })).filter(({ code }) => code === 'open_transaction')).toEqual([
      expect.objectContaining({
        severity: 'warning',
        message: 'transaction of pid 5 ("bob") holds a lock on the table since 65 s',
        detail: 'The start waits for its end, and so would the cutover. Query: SELECT 1',
      }),
      expect.objectContaining({
        message: 'prepared transaction \'g\' ("bob") is open since 30 h',
        hint: "COMMIT PREPARED or ROLLBACK PREPARED 'g';",
      }),
    ]);
    expect(shownAge(0.4)).toBe('0 ms');
  });

  test('columns that refer to one whose type changes should follow', () => {
    const foreignKeysIn = [{ name: 'fk', table: 'public.items', columns: ['age'], from: ['user_age'], types: ['integer'] }];
    expect(first({ table: { foreignKeysIn }, definition: alter })).toMatchObject({
      severity: 'warning',
      message: 'public.items.user_age (integer) refers to column "age", whose type changes',
    });
  });

  test('publications are warned of', () => {
    expect(codes({ table: { publications: [{ name: 'p', columns: [], allTables: true }] } })).toEqual(['warning published']);
  });
});

describe('types and expressions', () => {
  const value = (type: string) => ({ value: { type, text: 'age', columns: ['age'], outside: [] } });
  const probe = (more: Partial<Probe>): Probe => ({
    column: 'age',
    direction: 'up',
    given: false,
    type: 'bigint',
    result: value('bigint'),
    ...more,
  });
  const problem = (code: string, message = 'no') => ({ problem: { code, message, detail: '', hint: '' } });
  const of = (probes: Probe[], more: Changes = {}) => first({ definition: alter, probes, ...more });

  test.each([
    [probe({ result: problem('42804') }), 'no_cast', 'column "age" cannot be cast automatically to type bigint'],
    [
      probe({ direction: 'down', type: 'integer', result: problem('42804') }),
      'no_cast_back',
      'column "age" cannot be cast automatically back to type integer',
    ],
    [probe({ given: true, result: problem('42804') }), 'wrong_type', 'the expression for column "age" is not of type bigint'],
    [probe({ result: problem('42P17') }), 'not_immutable', 'the cast of column "age" to type bigint is not immutable'],
    [
      probe({ given: true, result: problem('42803', 'aggregate functions are not allowed in column generation expressions') }),
      ...['expression', 'the expression for column "age": aggregate functions are not allowed here'],
    ],
  ] as const)('%#: %s', (one, code, message) => {
    expect(of([one])).toMatchObject({ severity: 'blocker', code, message });
  });

  test('functions that Millrace would run for somebody else', () => {
    const probes = [probe({ result: { value: { ...value('bigint').value, outside: ['app.f(integer)'] } } })];
    expect(of(probes)).toMatchObject({ severity: 'blocker', code: 'untrusted_function', sqlstate: '42501' });
    const caller = { ...surroundings.caller, superuser: true };
    expect(of(probes, { around: { caller } })).toMatchObject({ severity: 'warning', code: 'untrusted_function' });
  });

  test('rows whose values do not come back', () => {
    const roundTrip = { value: { rows: 10, changed: 2, unstable: 0, example: 'id=3' } };
    expect(of([], { roundTrip })).toMatchObject({
      severity: 'blocker',
      code: 'not_invertible',
      message: 'the old values of 2 of 10 rows looked at do not come back from the new ones',
      detail: expect.stringMatching(/^For example of the row id=3\. /),
    });
    expect(of([], { roundTrip, definition: split })).toMatchObject({ severity: 'warning', code: 'not_invertible' });
    expect(of([], { roundTrip: problem('22P02', 'invalid input') })).toMatchObject({
      severity: 'blocker',
      code: 'not_convertible',
      sqlstate: '22P02',
    });
  });

  test('the same type is nothing to do', () => {
    const definition: AlterDefinition = { kind: 'alter', columns: [{ column: 'age', type: 'integer', up: null, down: null }] };
    expect(of([probe({ type: 'int', result: value('integer') })], { definition })).toMatchObject({
      severity: 'blocker',
      code: 'nothing_to_do',
    });
  });

  test.each([
    ['character varying(10)', 'character varying(20)', true],
    ['character varying(10)', 'character varying', true],
    ['character varying(10)', 'text', true],
    ['text', 'character varying', true],
    ['numeric(10,2)', 'numeric(12,2)', true],
    ['numeric(10,2)', 'numeric', true],
    ['cidr', 'inet', true],
    ['character varying(20)', 'character varying(10)', false],
    ['character varying', 'character varying(10)', false],
    ['text', 'character varying(10)', false],
    ['bit varying(5)', 'text', false],
    ['numeric(10,2)', 'numeric(12,3)', false],
    ['numeric', 'numeric(10,2)', false],
    ['integer', 'bigint', false],
  ])('%s to %s needs no rewrite: %s', (before, after, expected) => {
    expect(isMetadataOnly(before, after)).toBe(expected);
  });
});

test('EXPLAIN counts what stands in the way, blockers first', () => {
  const one = examined({
    around: { walLevel: 'minimal', targetExists: true },
    table: { publications: [{ name: 'p', columns: [], allTables: false }] },
  });
  const lines = explainLines(one, findings(one));
  expect(lines[0]).toBe('Migration m: move email from public.users to new table public.emails');
  const found = lines.slice(lines.indexOf('Findings: 2 things stand in the way'));
  expect(found.filter((line) => /^ {2}\w/.test(line)).map((line) => line.split(':')[0])).toEqual([
    ...['  BLOCKER target_exists', '  BLOCKER wal_level', '  WARNING published', '  INFO on_conflict'],
  ]);
});
