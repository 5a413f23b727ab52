/** postgres.js: everything is a pipelined prepared statement; transactions, savepoints, cursors, COPY streams, LISTEN. */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import postgres from 'postgres';
import { expect } from 'vitest';
import { errorOf } from './support/errors.ts';
import { firstTotals } from './support/live.ts';
import { clientSuite } from './support/suite.ts';

clientSuite<postgres.Sql>(
  'postgres.js',
  { open: ({ url }) => postgres(url, { max: 4, onnotice: () => {} }), close: (sql) => sql.end({ timeout: 5 }) },
  ({ both, live }) => {
    both('migrations: a script, and its statements in one transaction', async (sql) => {
      await sql
        .unsafe('CREATE TABLE person (id serial PRIMARY KEY, name text NOT NULL UNIQUE); CREATE INDEX ON person (lower(name))')
        .simple();
      await sql.begin(async (tx) => {
        await tx`ALTER TABLE person ADD data jsonb`;
        await tx`ALTER TABLE person ADD tags text[] NOT NULL DEFAULT '{}'`;
        await tx`CREATE TYPE mood AS ENUM ('well', 'unwell')`;
        await tx`ALTER TABLE person ADD mood mood`;
      });
    });

    both('introspection: columns of a result before it runs, and the catalog', async (sql) => {
      const described = await sql`SELECT id, name, tags FROM person WHERE id = ${1} AND name = ${'x'}`.describe();
      const columns = await sql`SELECT column_name, udt_name FROM information_schema.columns WHERE table_name = 'person' ORDER BY 1`;
      return [described.types, described.columns.map(({ name, type }) => ({ name, type })), [...columns]];
    });

    both('create, read, update, delete, by its helpers', async (sql) => {
      const people = [
        { name: 'Ada', tags: ['a', 'b"c'], data: sql.json({ deep: [1, { x: null }] }), mood: 'well' },
        { name: 'Bob', tags: [], data: null, mood: null },
        { name: 'Cy', tags: ['z'], data: sql.json(3), mood: 'unwell' },
      ];
      const inserted = await sql`INSERT INTO person ${sql(people)} RETURNING *`;
      expect(inserted.count).toBe(3);
      await sql`UPDATE person SET ${sql({ name: 'Bo', tags: ['new'] }, 'name', 'tags')} WHERE name = ${'Bob'}`;
      expect((await sql`DELETE FROM person WHERE name IN ${sql(['Cy', 'nobody'])}`).count).toBe(1);
      return [
        [...inserted],
        [...(await sql`SELECT * FROM person ORDER BY id`)],
        [...(await sql`SELECT id, name FROM person ORDER BY id`.values())],
      ];
    });

    both('transactions: commit, rollback, savepoint, options', async (sql) => {
      await sql.begin(async (tx) => {
        await tx`INSERT INTO person (name) VALUES ('kept')`;
        await tx
          .savepoint(async (inner) => {
            await inner`INSERT INTO person (name) VALUES ('undone')`;
            await inner`SELECT 1 / 0`;
          })
          .catch(() => undefined);
      });
      await expect(
        sql.begin(async (tx) => {
          await tx`DELETE FROM person`;
          throw new Error('changed our mind');
        }),
      ).rejects.toThrow('changed our mind');
      const readOnly = await errorOf(sql.begin('isolation level repeatable read read only', (tx) => tx`DELETE FROM person`));
      return [readOnly, [...(await sql`SELECT name FROM person ORDER BY name`)]];
    });

    both('the pool: a pipeline of many statements on few connections, some of them wrong', (sql) =>
      Promise.all(
        Array.from({ length: 60 }, (_, i) =>
          i % 7 === 3 ? errorOf(sql`SELECT 1 / ${0}::integer`) : sql`SELECT ${i}::integer AS i`.then((rows) => rows[0]?.['i']),
        ),
      ),
    );

    both('cursors: in parts, ended early, and as an iterator', async (sql) => {
      const parts: number[] = [];
      await sql`SELECT generate_series(1, 25) AS n`.cursor(10, (rows) => {
        parts.push(rows.length);
      });
      let last = 0;
      await sql`SELECT generate_series(1, 100000) AS n`.cursor(10, (rows) => {
        last = rows[0]?.['n'];
        return last > 30 ? sql.CLOSE : undefined;
      });
      let sum = 0;
      for await (const [row] of sql`SELECT generate_series(1, 10) AS n`.cursor()) sum += row?.['n'];
      expect({ parts, last, sum }).toEqual({ parts: [10, 10, 5], last: 31, sum: 55 });
    });

    both('rows one by one', async (sql) => {
      let sum = 0;
      await sql`SELECT generate_series(1, 5000) AS n`.forEach((row) => {
        sum += row['n'];
      });
      expect(sum).toBe(12502500);
    });

    // On connections of their own: postgres.js ends a COPY stream late enough to take the next one of its connection with it, directly too.
    // An error of the server during COPY FROM STDIN leaves it waiting for ever: not tried.
    both('COPY in and out as streams', async (sql, { url }) => {
      await sql`CREATE TABLE line (n integer, text text)`;
      const lines = Array.from({ length: 5000 }, (_, i) => `${i}\tline ${i}\n`);
      const [writer, reader] = [postgres(url, { max: 1 }), postgres(url, { max: 1 })];
      await pipeline(Readable.from(lines), await writer`COPY line FROM STDIN`.writable());
      let length = 0;
      for await (const chunk of await reader`COPY (SELECT * FROM line ORDER BY n) TO STDOUT`.readable()) length += chunk.length;
      expect(length).toBe(lines.join('').length);
      await Promise.all([writer.end({ timeout: 1 }), reader.end({ timeout: 1 })]);
      return [...(await sql`SELECT count(*)::integer FROM line`)];
    });

    both('LISTEN and NOTIFY', async (sql) => {
      let heard: (payload: string) => void = () => {};
      const arrived = new Promise<string>((resolve) => {
        heard = resolve;
      });
      const { unlisten } = await sql.listen('news', (payload) => heard(payload));
      await sql.notify('news', 'extra, extra');
      expect(await arrived).toBe('extra, extra');
      await unlisten();
    });

    both('a query that is cancelled', async (sql) => {
      const slow = sql`SELECT pg_sleep(20)`.execute();
      setTimeout(() => slow.cancel(), 300);
      return [await errorOf(slow), [...(await sql`SELECT 1 AS still_there`)]];
    });

    both('errors: every field of the server', async (sql) => [
      await errorOf(sql`INSERT INTO person (name) VALUES (${'kept'})`),
      await errorOf(sql`INSERT INTO person (name) VALUES (${null})`),
      await errorOf(sql`INSERT INTO person (name, mood) VALUES ('x', ${'furious'})`),
      await errorOf(sql`SELECT nam FROM person`),
      await errorOf(sql.unsafe('SELECT 1; SELECT * FORM person')),
      await errorOf(sql`SELECT lowerr(name) FROM person`),
    ]);

    live('a live view follows the origin', async (sql, view) => {
      for (const statement of view.statements) await sql.unsafe(statement, [], { prepare: true });
      const totals = async (): Promise<unknown[]> => [...(await sql`SELECT * FROM live.totals WHERE amount > ${0} ORDER BY customer`)];
      expect(await totals()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(totals).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
    });
  },
);
