/** node-postgres: Client, pg-pool, pg-cursor, pg-query-stream. It has no migration tool: a script of several statements is one here. */
import pg from 'pg';
import Cursor from 'pg-cursor';
import QueryStream from 'pg-query-stream';
import { expect } from 'vitest';
import { errorOf } from './support/errors.ts';
import { firstTotals } from './support/live.ts';
import { clientSuite } from './support/suite.ts';

/** Work on one connection of the pool. */
async function withClient<T>(pool: pg.Pool, work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  try {
    return await work(client);
  } finally {
    client.release();
  }
}

clientSuite<pg.Pool>(
  'node-postgres',
  { open: ({ url }) => new pg.Pool({ connectionString: url, max: 5 }), close: (pool) => pool.end() },
  ({ both, through, live, place }) => {
    both('migrations: several statements in one text, a broken one leaves nothing behind', async (pool) => {
      await pool.query(`
        CREATE TABLE item (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, price numeric(10, 2) CHECK (price >= 0));
        CREATE INDEX item_price ON item (price);
        COMMENT ON TABLE item IS 'what we sell; not "services"'`);
      await expect(pool.query('CREATE TABLE left_behind (); SELECT nothing')).rejects.toThrow('column "nothing" does not exist');
      expect((await pool.query(`SELECT to_regclass('left_behind') AS found`)).rows).toEqual([{ found: null }]);
    });

    both('introspection: the catalog, and the description of a result', async (pool) => {
      const columns = await pool.query(
        `SELECT column_name, data_type, is_nullable, numeric_scale FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position`,
        ['item'],
      );
      const described = await pool.query('SELECT id, name, price, now() AS asked, NULL::integer[] AS many FROM item WHERE false');
      // The OID of the table differs between the two databases.
      return [columns.rows, described.fields.map(({ tableID: _, ...field }) => field)];
    });

    both('create, read, update, delete, with values of many types', async (pool) => {
      const inserted = await pool.query(`INSERT INTO item (name, price) VALUES ($1, $2), ('b', NULL), ('c', 3) RETURNING *`, [
        'ä"\'',
        '12.50',
      ]);
      expect(inserted).toMatchObject({ command: 'INSERT', rowCount: 3 });
      expect(await pool.query('UPDATE item SET price = price * 2 WHERE price IS NOT NULL')).toMatchObject({
        command: 'UPDATE',
        rowCount: 2,
      });
      expect(await pool.query(`DELETE FROM item WHERE name = 'b'`)).toMatchObject({ command: 'DELETE', rowCount: 1 });
      const types = await pool.query(
        'SELECT $1::jsonb AS j, $2::bytea AS b, $3::text[] AS a, $4::timestamptz AS t, $5::bigint AS n, $6::boolean AS f, $7::text AS empty',
        [{ deep: [1, null] }, Buffer.from([0, 255, 1]), ['x', 'y,"z'], new Date(0), 2n ** 60n, false, ''],
      );
      return [inserted.rows, types.rows, (await pool.query({ text: 'TABLE item ORDER BY id', rowMode: 'array' })).rows];
    });

    both('transactions: commit, rollback, savepoint, and an aborted one refuses until its end', (pool) =>
      withClient(pool, async (client) => {
        await client.query('BEGIN');
        await client.query(`INSERT INTO item (name) VALUES ('kept')`);
        await client.query('SAVEPOINT one');
        await client.query(`INSERT INTO item (name) VALUES ('undone')`);
        const duplicate = await errorOf(client.query(`INSERT INTO item (name) VALUES ('kept')`));
        const refused = await errorOf(client.query('SELECT 1'));
        await client.query('ROLLBACK TO SAVEPOINT one');
        await client.query('COMMIT');
        await client.query('BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY');
        const readOnly = await errorOf(client.query('DELETE FROM item'));
        await client.query('ROLLBACK');
        return [duplicate, refused, readOnly, (await client.query('SELECT name FROM item ORDER BY name')).rows];
      }),
    );

    both('the pool: more queries at once than connections, and all of them usable after errors', async (pool) => {
      const answers = await Promise.all(
        Array.from({ length: 50 }, (_, i) =>
          i % 5 === 0
            ? errorOf(pool.query('SELECT 1 / $1::integer', [0]))
            : pool.query('SELECT $1::integer AS i, pg_sleep(0.002)', [i]).then(({ rows }) => rows[0].i),
        ),
      );
      expect(pool.totalCount).toBeLessThanOrEqual(5);
      return answers;
    });

    // This is how a client can tell the modes apart, as with PgBouncer.
    through(`pg_backend_pid() is ${place.mode === 'session' ? 'the same' : 'another one'} in a later transaction`, (pool) =>
      withClient(pool, async (client) => {
        const pids = new Set<number>();
        for (let i = 0; i < 300 && pids.size < 2; i++) {
          pids.add((await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid);
          await Promise.all([pool.query('SELECT pg_sleep(0.001)'), pool.query('SELECT pg_sleep(0.002)')]);
        }
        expect(pids.size).toBe(place.mode === 'session' ? 1 : 2);
      }),
    );

    // In transaction mode the statement may have been prepared on another server connection: Millrace has to know it there.
    both('named prepared statements, used again, also with another transaction in between', (pool) =>
      withClient(pool, async (client) => {
        const found: unknown[] = [];
        for (const price of [25, 6, 25, 0]) {
          found.push((await client.query({ name: 'by price', text: 'SELECT name FROM item WHERE price = $1', values: [price] })).rows);
          await client.query('BEGIN; SELECT 1; COMMIT');
          await Promise.all([pool.query('SELECT 1'), pool.query('SELECT 2')]);
        }
        return found;
      }),
    );

    const changedTable = (pool: pg.Pool, check: (again: () => Promise<pg.QueryResult>) => Promise<unknown>): Promise<unknown> =>
      withClient(pool, async (client) => {
        const named = { name: 'whole rows', text: 'SELECT * FROM shape' };
        await client.query('CREATE TABLE shape (a integer)');
        await client.query(named);
        await client.query('ALTER TABLE shape ADD b integer');
        const found = await check(() => client.query(named));
        await client.query('DROP TABLE shape');
        return found;
      });
    if (place.mode === 'session')
      both('a named statement whose table has changed says so, as Postgres does', (pool) =>
        changedTable(pool, async (again) => {
          const { code, message } = await errorOf(again());
          return { code, message };
        }),
      );
    // As with PgBouncer it depends on the server connection, which may be one where the statement has to be prepared anew.
    else
      through('a named statement whose table has changed says so at most once on each server connection', (pool) =>
        changedTable(pool, async (again) => {
          for (let tries = 0; ; tries++) {
            const result = await again().catch((error: { code: string }) => error.code);
            if (result === '0A000' && tries < 3) continue;
            expect(result).toMatchObject({ fields: [{ name: 'a' }, { name: 'b' }] });
            return;
          }
        }),
      );

    both('pg-cursor: a result in parts, a second cursor while nothing is open, one closed early', (pool) =>
      withClient(pool, async (client) => {
        const cursor = client.query(new Cursor('SELECT n, repeat($1, 10) AS text FROM generate_series(1, 25) n', ['x']));
        const parts: number[] = [];
        for (let rows = await cursor.read(10); rows.length > 0; rows = await cursor.read(10)) parts.push(rows.length);
        expect(parts).toEqual([10, 10, 5]);
        const second = client.query(new Cursor('SELECT generate_series(1, 1000000) AS n'));
        expect(await second.read(2)).toEqual([{ n: 1 }, { n: 2 }]);
        await second.close();
        return (await client.query('SELECT 1 AS still_there')).rows;
      }),
    );

    both('pg-cursor: an error in the middle of the rows', (pool) =>
      withClient(pool, async (client) => {
        const cursor = client.query(new Cursor('SELECT 1 / (4 - n) AS quotient FROM generate_series(1, 9) n'));
        expect(await cursor.read(2)).toHaveLength(2);
        const error = await errorOf(cursor.read(2));
        return [error, (await client.query('SELECT 1 AS still_there')).rows];
      }),
    );

    both('pg-query-stream: 20000 rows in batches, and a stream that is given up', (pool) =>
      withClient(pool, async (client) => {
        let sum = 0;
        const stream = client.query(new QueryStream('SELECT n FROM generate_series(1, $1::integer) n', [20000], { batchSize: 300 }));
        for await (const { n } of stream) sum += n;
        expect(sum).toBe(200010000);
        for await (const { n } of client.query(new QueryStream('SELECT n FROM generate_series(1, 20000) n', [], { batchSize: 10 })))
          if (n > 15) break;
        return (await client.query('SELECT 1 AS still_there')).rows;
      }),
    );

    both('a cursor of SQL inside a transaction', (pool) =>
      withClient(pool, async (client) => {
        await client.query('BEGIN');
        await client.query('DECLARE hundred SCROLL CURSOR FOR SELECT generate_series(1, 100) AS n');
        const rows = [
          (await client.query('FETCH 2 FROM hundred')).rows,
          (await client.query('FETCH ABSOLUTE -1 FROM hundred')).rows,
          (await client.query('FETCH BACKWARD 1 FROM hundred')).rows,
        ];
        await client.query('CLOSE hundred; COMMIT');
        return rows;
      }),
    );

    both('LISTEN and NOTIFY: a message of another session arrives unasked', (pool) =>
      withClient(pool, async (client) => {
        // A listening client keeps its server connection, in transaction mode too.
        await client.query('LISTEN news');
        const arrived = new Promise<pg.Notification>((resolve) => client.once('notification', resolve));
        await pool.query(`SELECT pg_notify('news', 'it is ' || $1)`, ['read']);
        const { channel, payload } = await arrived;
        await client.query('UNLISTEN *');
        return { channel, payload };
      }),
    );

    both('notices, and their fields', (pool) =>
      withClient(pool, async (client) => {
        const notices: unknown[] = [];
        const listen = ({
          severity,
          message,
          hint,
          code,
        }: { [field in 'severity' | 'message' | 'hint' | 'code']?: string | undefined }): void => {
          notices.push({ severity, message, hint, code });
        };
        client.on('notice', listen);
        await client.query('DROP TABLE IF EXISTS none_such');
        await client.query(`DO $$ BEGIN RAISE WARNING 'careful' USING HINT = 'look', ERRCODE = '01234'; END $$`);
        client.off('notice', listen);
        return notices;
      }),
    );

    both('errors: every field of the server', async (pool) => [
      await errorOf(pool.query(`INSERT INTO item (name) VALUES ('kept')`)),
      await errorOf(pool.query('INSERT INTO item (name, price) VALUES ($1, $2)', ['cheap', -1])),
      await errorOf(pool.query('SELECT id, nam FROM item')),
      await errorOf(pool.query('SELECT * FORM item')),
      await errorOf(pool.query(`SELECT 'x'::integer`)),
      await errorOf(
        pool.query(`DO $$ BEGIN RAISE 'ours' USING DETAIL = 'd', HINT = 'h', ERRCODE = 'U0001', TABLE = 't', COLUMN = 'c'; END $$`),
      ),
      await errorOf(pool.query('SET statement_timeout = 10; SELECT pg_sleep(5)')),
    ]);

    live('a live view follows the origin, read by a named statement', async (pool, view) => {
      for (const statement of view.statements) await pool.query(statement);
      const totals = async (): Promise<unknown[]> =>
        (await pool.query({ name: 'totals', text: 'SELECT * FROM live.totals WHERE orders >= $1 ORDER BY customer', values: [1] })).rows;
      expect(await totals()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(totals).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
    });

    live('extended SQL inside transactions of the client: rolled back it is gone, committed it is ready', (pool) =>
      withClient(pool, async (client) => {
        const create = { name: 'another view', text: 'CREATE MATERIALIZED VIEW live.largest AS SELECT max(amount) FROM live.orders' };
        await client.query('BEGIN');
        await client.query(create);
        await client.query('ROLLBACK');
        expect((await errorOf(client.query('SELECT * FROM live.largest'))).code).toBe('42P01');
        await client.query('BEGIN');
        await client.query(create);
        await client.query('COMMIT');
        expect((await client.query('SELECT * FROM live.largest')).rows).toEqual([{ max: 20 }]);
      }),
    );
  },
);
