/** psql: scripts, the \d family, \copy, \gexec, \watch, \gset, variables, ON_ERROR_STOP. Its output has to be the same to the byte. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { havePsql, psql } from '../support/psql.ts';
import type { Target } from './support/place.ts';
import { clientSuite } from './support/suite.ts';

/** What psql prints for a script in its own format. */
async function output(target: Target, script: string): Promise<{ stdout: string; stderr: string; code: number }> {
  return psql(target, script, { raw: true });
}

const schema = `
\\set ON_ERROR_STOP on
BEGIN;
CREATE TYPE mood AS ENUM ('well', 'unwell');
CREATE TABLE author (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name varchar(80) NOT NULL UNIQUE, born integer CHECK (born > 0), mood mood DEFAULT 'well');
CREATE TABLE book (id serial PRIMARY KEY, author_id integer NOT NULL REFERENCES author ON DELETE CASCADE, title text NOT NULL);
CREATE INDEX book_title ON book (title) WHERE title <> '';
CREATE VIEW old AS SELECT name FROM author WHERE born < 1900;
CREATE FUNCTION twice(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1';
COMMENT ON TABLE author IS 'who writes';
COMMIT;
`;

if (!havePsql) describe.skip('psql (not installed on this machine)', () => test('all of it'));
else
  clientSuite<null>('psql', { open: () => null, close: () => undefined }, ({ both, live }) => {
    both('migrations: a script that stops at an error, and one that does not', async (_, target) => {
      const good = await output(target, schema);
      expect(good).toMatchObject({ stderr: '', code: 0 });
      const broken = await output(target, '\\set ON_ERROR_STOP on\nBEGIN;\nCREATE TABLE half ();\nSELECT nothing;\nCOMMIT;\n');
      expect(broken.code).toBe(3);
      return [good, broken, await output(target, 'CREATE TABLE author ();\nSELECT 1;\n')];
    });

    for (const command of [
      '\\d',
      '\\d+ author',
      '\\d book',
      '\\d author_pkey',
      '\\d+ old',
      '\\dt',
      '\\dti+ book*',
      '\\dv',
      '\\ds',
      '\\dT+ mood',
      '\\df twice',
      '\\sf twice',
      '\\sv old',
      '\\dn',
      '\\dp author',
      '\\dd',
      '\\d nothing',
      '\\du app',
      '\\dx',
      '\\l psql_none',
      '\\set VERBOSITY verbose\nSELECT 1/0;\n\\errverbose',
    ])
      both(`introspection: ${command.split('\n')[0]}`, (_, target) => output(target, `${command}\n`));

    both('create, read, update, delete, and the ways to print a result', (_, target) =>
      output(
        target,
        `INSERT INTO author (name, born) VALUES ('Ada', 1815), ('Bob', NULL), ('O''Neil', 1900) RETURNING *;
         UPDATE author SET born = born + 1 WHERE name = 'Ada';
         DELETE FROM author WHERE name LIKE 'O%';
         \\pset null '(none)'
         TABLE author; \\x
         TABLE author \\g (format=csv)
         SELECT 1 AS a \\; SELECT 2 AS b;
         SELECT id AS bob FROM author WHERE name = 'Bob' \\gset
         SELECT :bob AS id, :'bob' AS text;
         SELECT name, mood, 1 AS n FROM author \\crosstabview name mood n
         TABLE author \\gdesc
         \\echo :ROW_COUNT :SQLSTATE :LAST_ERROR_MESSAGE
`,
      ),
    );

    both('transactions: commit, rollback, savepoint, and ON_ERROR_ROLLBACK', (_, target) =>
      output(
        target,
        `BEGIN;
         INSERT INTO author (name) VALUES ('Kept');
         SAVEPOINT one;
         INSERT INTO author (name) VALUES ('Kept');
         SELECT 1;
         ROLLBACK TO one;
         COMMIT AND CHAIN;
         DELETE FROM author;
         ROLLBACK;
         \\set ON_ERROR_ROLLBACK on
         BEGIN;
         INSERT INTO author (name) VALUES ('Kept too');
         SELECT nothing;
         COMMIT;
         COMMIT;
         SELECT name FROM author ORDER BY name;
`,
      ),
    );

    both('\\copy from and to a file, COPY with its data in the script, and bad data', async (_, target) => {
      const folder = mkdtempSync(join(tmpdir(), 'psql-copy-'));
      try {
        writeFileSync(join(folder, 'in.csv'), Array.from({ length: 3000 }, (_, i) => `1,"title, ${i}"\n`).join(''));
        const copied = await output(
          target,
          `\\copy book (author_id, title) FROM '${folder}/in.csv' (FORMAT csv)
           \\copy (SELECT title FROM book ORDER BY id) TO '${folder}/out.txt'
           COPY book (author_id, title) FROM STDIN;
1\tfrom the script
\\.
           COPY book (author_id, title) FROM STDIN;
x\tbad
\\.
           COPY (SELECT count(*), max(id) FROM book) TO STDOUT;
`,
        );
        // The folder is named in no message but may be in one of tomorrow's.
        return [JSON.stringify(copied).replaceAll(folder, ''), readFileSync(join(folder, 'out.txt'), 'utf8')];
      } finally {
        rmSync(folder, { recursive: true });
      }
    });

    both('\\gexec runs what a query returns', (_, target) =>
      output(
        target,
        `SELECT format('CREATE TABLE part_%s (n integer)', n) FROM generate_series(1, 3) n \\gexec
         SELECT 'SELECT 1/0', 'SELECT 2' \\gexec
         \\dt part_*
`,
      ),
    );

    // psql opens a transaction of its own for the cursor.
    both('FETCH_COUNT: a result through a cursor', (_, target) =>
      output(
        target,
        '\\set FETCH_COUNT 7\nSELECT n, n * n FROM generate_series(1, 30) n;\nSELECT 10 / (20 - n) FROM generate_series(1, 30) n;\n',
      ),
    );

    both('pooling: many psql at once', (_, target) =>
      Promise.all(
        Array.from({ length: 8 }, (_, i) => psql(target, ['-c', `SELECT ${i}, pg_sleep(0.05)`, '-c', 'SELECT count(*) FROM author'])),
      ),
    );

    // A statement of PREPARE lives in one server session: in transaction mode Millrace has to keep the client on it.
    both('PREPARE, EXECUTE, DEALLOCATE and DISCARD ALL', (_, target) =>
      output(
        target,
        "PREPARE by_name AS SELECT born FROM author WHERE name = $1;\nEXECUTE by_name('Ada');\nDEALLOCATE by_name;\nEXECUTE by_name('Ada');\nDISCARD ALL;\n",
      ),
    );

    both('errors: with DETAIL, HINT, a caret at the position', (_, target) =>
      output(
        target,
        `INSERT INTO author (name) VALUES ('Ada');
         INSERT INTO author (name, born) VALUES ('x', -1);
         SELECT id, nam FROM author;
         SELECT * FORM author;
         SELECT 'x'::mood;
         DO $$ BEGIN RAISE 'ours' USING DETAIL = 'd', HINT = 'h'; END $$;
`,
      ),
    );

    live('a live view follows the origin: a script, \\watch, and what \\d says of it', async (_, view, target) => {
      const made = await psql(target, `\\set ON_ERROR_STOP on\n${view.statements.join(';\n')};\nTABLE live.totals ORDER BY customer;\n`);
      expect(made).toMatchObject({ stdout: 'ada|2|30\nbob|1|5\n', code: 0 });
      // psql 15 has no count for \\watch: it goes on until the query fails.
      const watched = psql(
        target,
        `\\set ON_ERROR_STOP on\nSELECT amount, 1 / (20 - orders)::integer FROM live.totals WHERE customer = 'bob' \\watch 0.1\n`,
      );
      // On a busy machine psql would find all orders written already, and no row to show.
      const begun = `SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT amount, 1 / (20%'\n`;
      while ((await psql(target, begun)).stdout.trim() === '0') await new Promise((resolve) => setTimeout(resolve, 50));
      for (let amount = 1; amount < 20; amount++) {
        await view.order('bob', amount);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      const { stdout, stderr } = await watched;
      expect(stderr).toContain('division by zero');
      expect(stdout).toMatch(/\b\d+\|0\b/);
      expect((await psql(target, '\\d live.totals\n')).stdout).toBe('customer|text|||\norders|integer|||\namount|integer|||\n');
    });
  });
