import fc from 'fast-check';
import { parse as parseIndependently } from 'pgsql-ast-parser';
import { beforeAll, describe, expect, test } from 'vitest';
import type { ExtendedStatement } from '../../../src/sql/ast.ts';
import { mayBeExtended } from '../../../src/sql/gate.ts';
import { loadPostgresParser, parseSql } from '../../../src/sql/postgres-parser.ts';
import { quoteIdentifier } from '../../../src/sql/quote.ts';
import { splitStatements } from '../../../src/sql/split.ts';
import { parseStatements } from '../../../src/sql/statements.ts';
import { blank, ordinary, plainName, qualified, statement, viewQuery } from './arbitraries.ts';
import { printStatement } from './print.ts';

beforeAll(loadPostgresParser);

/** Tokens with blanks taken in turn between them. */
function join(tokens: readonly string[], blanks: readonly string[]): string {
  return tokens.map((token, i) => (i === 0 ? token : `${blanks[i % blanks.length] ?? ' '}${token}`)).join('');
}

const blanks = fc.array(blank, { minLength: 1, maxLength: 5 });
const printed = fc.tuple(statement, blanks).map(([ast, between]) => join(printStatement(ast), between));
const withoutOffsets = (value: unknown): unknown =>
  JSON.parse(JSON.stringify(value, (key, item: unknown) => (key === 'at' || key === 'queryAt' ? 0 : item)));

/** A line comment directly behind a query would swallow what follows, so nothing here ends in one. */
const anyStatement = fc.oneof(ordinary, printed);

function gate(text: string, padding = 0): boolean {
  const bytes = Buffer.from(`${'DROP SOURCE '.slice(0, padding)}${text}${'; DROP SOURCE x'.slice(0, padding)}`);
  return mayBeExtended(bytes, padding, bytes.length - padding);
}

test('a printed statement parses to itself', () => {
  fc.assert(
    fc.property(statement, blanks, (ast, between) => {
      const [only, ...rest] = parseStatements(join(printStatement(ast), between));
      expect(rest).toEqual([]);
      expect(withoutOffsets(only?.statement)).toEqual(withoutOffsets(ast));
    }),
    { numRuns: 1500 },
  );
});

test('offsets of names point at the names', () => {
  fc.assert(
    fc.property(qualified, fc.array(ordinary, { maxLength: 2 }), (name, before) => {
      const first = quoteIdentifier(name.schema ?? name.name);
      const source = printStatement({ type: 'drop_object', kind: 'source', ifExists: false, names: [name], cascade: false }).join(' ');
      const statements = parseStatements([...before, source].join('; '));
      const last = statements.at(-1);
      expect(last?.statement?.type).toBe('drop_object');
      if (last?.statement?.type !== 'drop_object') return;
      expect(last.text.slice(last.statement.names[0]?.at)).toSatisfy((tail: string) => tail.startsWith(first));
    }),
    { numRuns: 300 },
  );
});

test('statements joined by semicolons are split again', () => {
  fc.assert(
    fc.property(fc.array(anyStatement, { maxLength: 6 }), blanks, (statements, between) => {
      const text = statements.join(`${between[0] ?? ''};;${between[1] ?? ''}`);
      const split = splitStatements(text);
      // Comments between statements belong to the one behind (in front of it) or before it.
      expect(split.map(({ first, end }) => text.slice(first, end))).toHaveLength(statements.length);
      split.forEach(({ first, at, end }, i) => {
        expect(text.slice(first, end).startsWith(statements[i] ?? '?')).toBe(true);
        expect(text.slice(at, end).trim()).toBe(text.slice(at, end));
      });
    }),
    { numRuns: 700 },
  );
});

test("the cuts are those of Postgres's parser", () => {
  fc.assert(
    fc.property(fc.array(ordinary, { maxLength: 6 }), blanks, (statements, between) => {
      const text = `${between[0]}${statements.join(`${between[1] ?? ''};${between[2] ?? ' '}`)}${between[3] ?? ''}`;
      const bytes = Buffer.from(text);
      const theirs = (parseSql(text).stmts ?? []).map(({ stmt_location: from = 0, stmt_len: length }) =>
        bytes
          .subarray(from, length === undefined || length === 0 ? undefined : from + length)
          .toString()
          .trim(),
      );
      expect(splitStatements(text).map(({ first, end }) => text.slice(first, end))).toEqual(theirs);
    }),
    { numRuns: 700 },
  );
});

describe('the gate never says no to what is extended', () => {
  const fragments = fc.constantFrom(
    ...[
      'create',
      'CREATE',
      'alter',
      'drop',
      'show',
      'validate',
      'refresh',
      'secret',
      'connection',
      'source',
      'sink',
      'SOURCES',
      'SINKS',
      'table',
      'tables',
    ],
    ...[
      'materialized',
      'view',
      'views',
      'schema',
      'swap',
      'with',
      'from',
      'temp',
      'if',
      'not',
      'exists',
      'as',
      'select',
      'a',
      'b',
      '.',
      ',',
    ],
    ...[
      ' ',
      ' ',
      ' ',
      ' ',
      '\n',
      '\t',
      ';',
      ';',
      ';',
      '/*',
      '*/',
      '--',
      "'",
      '"',
      '$$',
      '$a$',
      '\\',
      "E'",
      '(',
      ')',
      'é',
      '-',
      '/',
      'begin atomic',
      'end',
      'function',
    ],
  );
  const soup = fc.array(fragments, { maxLength: 25 }).map((parts) => parts.join(''));
  const head = fc.constantFrom(
    'drop source a',
    'alter sink a pause',
    'show create sink s',
    'create table t from source s',
    'alter schema a swap with b',
    'show create table t',
    'DROP/**/VIEW v',
    'refresh --\nmaterialized view m',
  );

  const holds = (text: string, padding: number): void => {
    let extended: boolean;
    try {
      extended = parseStatements(text).some((s) => s.statement !== null);
    } catch {
      extended = true;
    }
    if (extended) expect(gate(text, padding)).toBe(true);
  };

  test('in texts of statements', () => {
    fc.assert(
      fc.property(fc.array(anyStatement, { minLength: 1, maxLength: 4 }), blank, fc.nat({ max: 9 }), (all, between, padding) =>
        holds(`${between}${all.join(`;${between}`)}`, padding),
      ),
      { numRuns: 1000 },
    );
  });
  test('in soups of fragments', () => {
    fc.assert(fc.property(soup, fc.nat({ max: 9 }), holds), { numRuns: 4000 });
    fc.assert(
      fc.property(soup, head, soup, fc.nat({ max: 9 }), (a, b, c, padding) => holds(`${a}${b}${c}`, padding)),
      { numRuns: 4000 },
    );
  });
  test('in long texts', () => {
    fc.assert(
      fc.property(soup, head, soup, fc.boolean(), (a, b, c, quoted) =>
        holds(`${a}${quoted ? `'${'x;'.repeat(200)}'` : 'y'.repeat(300)};${b}${c}`, 3),
      ),
      { numRuns: 500 },
    );
  });
});

describe('other readers agree', () => {
  const candidates = statement.filter(
    (s) =>
      s.type === 'create_materialized_view' ||
      s.type === 'drop_relation' ||
      s.type === 'drop_schema' ||
      s.type === 'refresh_materialized_view',
  );

  test("Postgres's parser on candidates", () => {
    fc.assert(
      fc.property(candidates, blanks, (ast, between) => {
        const parsed = parseSql(join(printStatement(ast), between)).stmts?.[0]?.stmt;
        expect(namesIn(parsed)).toEqual(namesOf(ast));
      }),
      { numRuns: 500 },
    );
  });

  test('pgsql-ast-parser on simple ones', () => {
    const simple = fc.record({ schema: fc.option(plainName), name: plainName, at: fc.constant(0) });
    fc.assert(
      fc.property(
        simple,
        fc.boolean(),
        fc.boolean(),
        viewQuery.filter((q) => /^SELECT (1|sum)/.test(q)),
        (name, ifNotExists, withData, query) => {
          const text = printStatement({
            type: 'create_materialized_view',
            ifNotExists,
            name,
            columns: null,
            query,
            queryAt: 0,
            withData,
          }).join(' ');
          const ours = parseStatements(text)[0]?.statement;
          expect(parseIndependently(text)[0]).toMatchObject({
            type: 'create materialized view',
            name: nonNull(name),
            ...(ifNotExists ? { ifNotExists: true } : {}),
            ...(withData ? {} : { withData: false }),
          });
          expect(ours).toMatchObject({
            type: 'create_materialized_view',
            name: { name: name.name, schema: name.schema },
            ifNotExists,
            withData,
          });
        },
      ),
      { numRuns: 200 },
    );
    fc.assert(
      fc.property(fc.array(simple, { minLength: 1, maxLength: 3 }), fc.boolean(), (names, ifExists) => {
        const text = printStatement({ type: 'drop_relation', kind: 'table', ifExists, names, cascade: false }).join(' ');
        expect(parseIndependently(text)[0]).toMatchObject({ type: 'drop table', names: names.map(nonNull) });
        expect(parseStatements(text)[0]?.statement).toMatchObject({
          type: 'drop_relation',
          names: names.map(({ schema, name }) => ({ schema, name })),
          ifExists,
        });
      }),
      { numRuns: 200 },
    );
  });
});

function nonNull({ schema, name }: { schema: string | null; name: string }): object {
  return schema === null ? { name } : { name, schema };
}

/** Every String and relation name in a DROP, CREATE MATERIALIZED VIEW or REFRESH of Postgres's parser, in order. */
function namesIn(node: unknown): string[] {
  const text = JSON.stringify(node, (key, value: unknown) => (key === 'query' ? undefined : value));
  const found: string[] = [];
  JSON.parse(text, function (this: Record<string, unknown>, key, value: unknown) {
    if (key === 'sval' && typeof value === 'string') found.push(value);
    if (key === 'relname' && typeof value === 'string')
      found.push(...(typeof this['schemaname'] === 'string' ? [this['schemaname']] : []), value);
    return value;
  });
  return found;
}

function namesOf(ast: ExtendedStatement): string[] {
  const parts = ({ schema, name }: { schema: string | null; name: string }): string[] => (schema === null ? [name] : [schema, name]);
  switch (ast.type) {
    case 'create_materialized_view':
      return [...parts(ast.name), ...(ast.columns ?? [])];
    case 'refresh_materialized_view':
      return parts(ast.name);
    case 'drop_relation':
      return ast.names.flatMap(parts);
    case 'drop_schema':
      return ast.names.map(({ name }) => name);
    default:
      return [];
  }
}
