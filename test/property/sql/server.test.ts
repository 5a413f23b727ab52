/** What src/sql claims about Postgres, asked of a real server. */
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isReservedName, needsQuotes } from '../../../src/sql/keywords.ts';
import { truncateName } from '../../../src/sql/parse.ts';
import { quoteIdentifier, quoteLiteral } from '../../../src/sql/quote.ts';
import { splitStatements } from '../../../src/sql/split.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { name, text } from './arbitraries.ts';

let server: TestPostgres;
let client: pg.Client;

beforeAll(async () => {
  server = await startPostgres();
  client = new pg.Client(server.url);
  await client.connect();
});
afterAll(async () => {
  await client?.end();
  await server?.stop();
});

test('the keywords are those of the server', async () => {
  const { rows } = await client.query<{ word: string; catcode: string }>('SELECT word, catcode FROM pg_get_keywords()');
  for (const { word, catcode } of rows) {
    expect([word, isReservedName(word), needsQuotes(word)]).toEqual([word, catcode === 'R' || catcode === 'T', catcode !== 'U']);
  }
});

test('quoting is that of quote_ident, and literals are read back whatever the setting', async () => {
  const samples = fc.sample(fc.record({ name, value: text }), { numRuns: 150, seed: 7 });
  for (const setting of ['on', 'off']) {
    await client.query(`SET standard_conforming_strings = ${setting}`);
    for (const { name: written, value } of samples) {
      const { rows } = await client.query(
        `SELECT quote_ident(${quoteLiteral(written)}) AS quoted, ${quoteLiteral(value)} AS ${quoteIdentifier(written)}`,
      );
      expect(rows[0]).toEqual({ quoted: quoteIdentifier(written), [written]: value });
    }
  }
  await client.query('RESET standard_conforming_strings');
});

test('names are cut where the server cuts them', async () => {
  for (const long of ['x'.repeat(64), 'é'.repeat(40), `a${'é'.repeat(40)}`, '😊'.repeat(16), `ab${'日'.repeat(30)}`, 'x'.repeat(63)]) {
    const { fields } = await client.query(`SELECT 1 AS "${long}"`);
    expect(truncateName(long)).toBe(fields[0]?.name);
  }
});

test('literals end where the server ends them', async () => {
  // The server runs each as one statement that returns one row; so must the splitter see it.
  for (const sql of [
    "SELECT 'a' -- ;'\n 'b;' AS x",
    "SELECT 'a' \n -- it's\n ';' AS x",
    "SELECT E'\\';' '' AS x".replace(" ''", "\n''"),
    'SELECT U&\'\\003B\' AS x, U&"d\\0061ta" FROM (SELECT 1 AS data) s',
    'SELECT $a$;$b$;$a$ AS x, 1 AS "a"";"',
    "SELECT 1 /* ; /* ' */ $$ */ AS x",
    'SELECT 1 AS x -- ;',
    'SELECT 1 AS a$b$, 2 AS c$b$',
    'SELECT -1 AS x, 3 - -1, 2*-1, 1.e3, .5e-1',
  ]) {
    const result = await client.query(`${sql}\n`);
    expect([sql, result.rows.length]).toEqual([sql, 1]);
    expect(splitStatements(sql)).toHaveLength(1);
  }
  await client.query('SET standard_conforming_strings = off');
  await client.query("SELECT '\\';' AS x");
  expect(splitStatements("SELECT '\\';' AS x", { standardConformingStrings: false })).toHaveLength(1);
});
