/**
 * Random pipelines of requests.
 * An extended statement stands beside an ordinary one of the same length that a server answers alike: what Millrace does with the one
 * is compared with what Postgres does with the other. So Postgres is the oracle of these too: order, transactions, errors, portals.
 */
import fc from 'fast-check';
import type { ExtendedStatement } from '../../../src/sql/ast.ts';
import type { FieldDescription, StatementResult, StatementRunner } from '../../../src/statements/caller-session.ts';
import { bind, close, describe, flush, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { Request } from '../../../src/wire/tags.ts';

/** What is said to Millrace, and what is said to Postgres in its place. */
export interface Step {
  readonly millrace: Buffer;
  readonly postgres: Buffer;
  /** Shown when a property fails. */
  readonly label: string;
}

export interface Text {
  readonly millrace: string;
  readonly postgres: string;
}

export const same = (text: string): Text => ({ millrace: text, postgres: text });

/** Both texts as long as the longer one, so that positions in what follows agree. */
function alike(millrace: string, postgres: string): Text {
  const length = Math.max(millrace.length, postgres.length);
  return { millrace: millrace.padEnd(length), postgres: postgres.padEnd(length) };
}

const explained = 'EXPLAIN (COSTS OFF) SELECT 1 UNION ALL SELECT 2';
const listed = 'SELECT chr(252) || n AS name, n AS size FROM (VALUES (1), (2), (3)) v(n)';
const secret = (plpgsql: string): Text => alike(`CREATE SECRET s AS '${plpgsql}'`, `DO $$BEGIN ${plpgsql}; END$$`);

export const showSources = alike('SHOW SOURCES', explained);
export const showTables = alike('SHOW TABLES', listed);
export const insertingSecret = secret('INSERT INTO t VALUES (2)');
/** Both end in: syntax error at or near "1". */
export const wrongSource = alike('CREATE SOURCE x FROM 1', 'COPY       xxxx FROM 1');
export const failingSecret = secret('PERFORM 1/0');

export const extendedTexts: readonly Text[] = [
  showSources,
  showTables,
  insertingSecret,
  secret('INSERT INTO u VALUES (1)'),
  failingSecret,
  wrongSource,
];

/** What a session of a test finds, in both databases. */
export const preparation =
  'CREATE TEMP TABLE t (a int); CREATE TEMP TABLE u (a int UNIQUE DEFERRABLE INITIALLY DEFERRED); CREATE TEMP TABLE live_t (a int)';

export const ordinaryTexts: readonly string[] = [
  'SELECT 1',
  'SELECT 1/0',
  'SELECT x',
  'SELEC 1',
  'BEGIN',
  'COMMIT',
  'ROLLBACK',
  'COMMIT AND CHAIN',
  'SAVEPOINT s',
  'ROLLBACK TO s',
  'RELEASE s',
  // Not the isolation level: whether that may be set hangs on a snapshot, and outside a block the look at a candidate forgets one that a
  // Parse in front of it has taken. There it would be without effect anyway.
  'SET TRANSACTION READ ONLY',
  'INSERT INTO t VALUES (1)',
  'INSERT INTO t VALUES (3), (4) RETURNING a',
  'INSERT INTO u VALUES (1)',
  'SELECT count(*) FROM t',
  'SELECT generate_series(1, 3)',
  'SELECT generate_series(1, 2000)',
  "DO $$BEGIN RAISE NOTICE 'n'; END$$",
  'COPY t FROM STDIN',
  'COPY (SELECT generate_series(1, 3)) TO STDOUT',
  'LISTEN x',
  'NOTIFY y',
  'DECLARE c CURSOR FOR SELECT generate_series(1, 5)',
  'FETCH 2 FROM c',
  'PREPARE c AS SELECT 5',
  'EXECUTE c',
  'DEALLOCATE ALL',
  'LOCK TABLE t',
  'VACUUM t',
  "SET client_encoding = 'LATIN1'",
  'SHOW search_path',
  'CREATE TEMP TABLE plain_t (a int)',
  'DROP TABLE plain_t',
  'DROP TABLE live_t',
  'DROP TABLE IF EXISTS none_such',
  'REFRESH MATERIALIZED VIEW none_such',
  '',
];

/**
 * Servers before 18 have no implicit transaction block outside a simple Query: there a text with an extended part still refuses what needs
 * a block, and has other words for what must not be in one.
 */
const blockTexts = /^(LOCK|DECLARE|VACUUM|SAVEPOINT|ROLLBACK TO|RELEASE|SET TRANSACTION|COMMIT AND CHAIN)/;

const extended = fc.constantFrom(...extendedTexts);

export function joined(...parts: readonly Text[]): Text {
  return { millrace: parts.map((part) => part.millrace).join('; '), postgres: parts.map((part) => part.postgres).join('; ') };
}

/** One statement, or several in one text. `share`: of ten statements so many are extended. */
function texts(share: number, blocks: boolean): fc.Arbitrary<Text> {
  const fitting = (text: string): boolean =>
    (blocks || !blockTexts.test(text)) && (share === 0 ? !text.includes('live') : !/SET client/.test(text));
  const ordinary = fc.constantFrom(...ordinaryTexts.filter(fitting)).map(same);
  const one = share === 0 ? ordinary : fc.oneof({ weight: 10 - share, arbitrary: ordinary }, { weight: share, arbitrary: extended });
  const several = fc.array(one, { minLength: 2, maxLength: 4 }).map((parts) => joined(...parts));
  return fc.oneof({ weight: 4, arbitrary: one }, { weight: 1, arbitrary: several });
}

export const step = (label: string, ...parts: readonly Buffer[]): Step => ({
  millrace: Buffer.concat(parts),
  postgres: Buffer.concat(parts),
  label,
});

export function simple(text: Text): Step {
  return { millrace: query(text.millrace, 'utf8'), postgres: query(text.postgres, 'utf8'), label: `Query ${text.millrace.trim()}` };
}

export function prepare(name: string, text: Text): Step {
  return {
    millrace: parse(name, text.millrace, 'utf8'),
    postgres: parse(name, text.postgres, 'utf8'),
    label: `Parse ${name} ${text.millrace.trim()}`,
  };
}

/** Bind without parameters; `formats` as in the message. */
export function bound(portal: string, statement: string, formats: readonly number[]): Step {
  if (formats.length === 0) return step(`Bind ${portal} ${statement}`, bind(portal, statement, [], 'utf8'));
  const counts = Buffer.from([0, 0, 0, 0, 0, formats.length, ...formats.flatMap((format) => [0, format])]);
  return step(`Bind ${portal} ${statement} ${formats}`, message(Request.bind, [Buffer.from(`${portal}\0${statement}\0`), counts]));
}

export function executed(portal: string, limit: number): Step {
  return step(`Execute ${portal} ${limit}`, message(Request.execute, [Buffer.from(`${portal}\0`), Buffer.from([0, 0, 0, limit])]));
}

export const synced: Step = step('Sync', sync);

/** FunctionCall of int4abs, in binary, or of a function that does not exist. */
function functionCall(oid: number): Step {
  const body = Buffer.alloc(20);
  body.writeInt32BE(oid, 0);
  body.set([0, 1, 0, 1, 0, 1, 0, 0, 0, 4, 255, 255, 255, 251, 0, 1], 4);
  return step(`FunctionCall ${oid}`, message(Request.functionCall, [body]));
}

export const copyData = (text: string): Step => step(`CopyData ${text.trim()}`, message(Request.copyData, [Buffer.from(text)]));
export const copyDone = step('CopyDone', message(Request.copyDone, []));
export const copyFail = step('CopyFail', message(Request.copyFail, [Buffer.from('no\0')]));
const copied = fc.constantFrom(
  [copyData('7\n'), copyDone],
  [copyData('7\n8'), copyData('\n'), copyDone],
  [copyData('x\n'), copyData('8\n'), copyDone],
  [copyData('7\n'), copyFail],
  [synced, copyData('7\n'), copyDone],
);

const name = fc.constantFrom('', 'a', 'b');
const limit = fc.constantFrom(0, 0, 1, 2, 3);
const formats = fc.constantFrom([], [], [1], [0], [0, 0], [0, 1]);

/** A step, or several that belong together as a driver would send them. */
function steps(share: number, blocks: boolean): fc.Arbitrary<readonly Step[]> {
  const text = texts(share, blocks);
  const copy = same('COPY t FROM STDIN');
  const wholeBatch = fc
    .tuple(name, text, formats, limit)
    .map(([n, t, f, l]) => [prepare(n, t), bound('', n, f), step('Describe P', describe('P', '', 'utf8')), executed('', l), synced]);
  return fc.oneof(
    { weight: 6, arbitrary: text.map((t) => [simple(t)]) },
    { weight: 4, arbitrary: wholeBatch },
    { weight: 3, arbitrary: fc.tuple(name, text).map(([n, t]) => [prepare(n, t)]) },
    { weight: 3, arbitrary: fc.tuple(name, name, formats).map(([p, s, f]) => [bound(p, s, f)]) },
    { weight: 3, arbitrary: fc.tuple(name, limit).map(([p, l]) => [executed(p, l)]) },
    { weight: 1, arbitrary: name.map((n) => [step(`Describe S ${n}`, describe('S', n, 'utf8'))]) },
    { weight: 1, arbitrary: name.map((n) => [step(`Describe P ${n}`, describe('P', n, 'utf8'))]) },
    { weight: 1, arbitrary: name.map((n) => [step(`Close S ${n}`, close('S', n, 'utf8'))]) },
    { weight: 1, arbitrary: name.map((n) => [step(`Close P ${n}`, close('P', n, 'utf8'))]) },
    { weight: 4, arbitrary: fc.constant([synced]) },
    { weight: 1, arbitrary: fc.constant([step('Flush', flush)]) },
    { weight: 1, arbitrary: fc.constantFrom([functionCall(1251)], [functionCall(31)]) },
    { weight: 1, arbitrary: fc.constantFrom([copyData('9\n')], [copyDone], [copyFail]) },
    { weight: 2, arbitrary: copied.map((data) => [simple(copy), ...data]) },
    { weight: 1, arbitrary: copied.map((data) => [prepare('', copy), bound('', '', []), executed('', 0), ...data, synced]) },
  );
}

export interface Pipeline {
  readonly steps: readonly Step[];
  /** Lengths of the chunks it is sent in. */
  readonly sizes: readonly number[];
}

/** Pipelines; of ten statements `share` are extended. `blocks`: also what is different in a transaction block. */
export function pipelines(share: number, blocks: boolean): fc.Arbitrary<Pipeline> {
  return fc.record({
    steps: fc.array(steps(share, blocks), { minLength: 1, maxLength: 12 }).map((groups) => groups.flat()),
    sizes: fc.array(fc.oneof(fc.integer({ min: 1, max: 60 }), fc.constant(10_000)), { minLength: 1, maxLength: 4 }),
  });
}

/** Leaves whatever state a pipeline has ended in, and shows what it has done. */
export const finale: readonly Step[] = [
  copyFail,
  synced,
  simple(same('ROLLBACK')),
  simple(same("SET client_encoding = 'UTF8'")),
  simple(same('SELECT a FROM t')),
  simple(same('SELECT a FROM u')),
  simple(same('SELECT 1 AS the_end')),
];

/** Carries the extended statements out as what stands beside them. */
export const runner: StatementRunner = {
  async claims(statement, _, session) {
    if (statement.type === 'refresh_materialized_view') return false;
    if (statement.type !== 'drop_relation') return true;
    const sql = "SELECT 1 FROM pg_catalog.pg_class WHERE relname = $1 AND relname LIKE 'live%' AND pg_table_is_visible(oid)";
    return (await session.query(sql, [statement.names[0]?.name ?? ''])).rows.length > 0;
  },
  upstreamText: () => null,
  describe: (statement) => columnsOf(statement),
  async run(statement, text, session): Promise<StatementResult> {
    if (statement.type === 'show_objects') {
      const { rows } = await session.query(statement.kind === 'sources' ? explained : listed);
      return { kind: 'rows', fields: columnsOf(statement) ?? [], rows, tag: 'SHOW' };
    }
    await session.query(statement.type === 'create_secret' ? `DO $$BEGIN ${statement.value}; END$$` : text);
    return { kind: 'done', tag: statement.type === 'create_secret' ? 'CREATE SECRET' : 'DROP TABLE' };
  },
};

function columnsOf(statement: ExtendedStatement): readonly FieldDescription[] | null {
  if (statement.type !== 'show_objects') return null;
  const text = { typeOid: 25, typeModifier: -1 };
  if (statement.kind === 'sources') return [{ name: 'QUERY PLAN', ...text }];
  return [
    { name: 'name', ...text },
    { name: 'size', typeOid: 23, typeModifier: -1 },
  ];
}
