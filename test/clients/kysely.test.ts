/** Kysely: Migrator, introspection, query builder, controlled transactions with savepoints, streams through pg-cursor. */
import { type Generated, type JSONColumnType, Kysely, type Migration, Migrator, PostgresDialect, sql } from 'kysely';
import pg from 'pg';
import Cursor from 'pg-cursor';
import { expect } from 'vitest';
import { errorOf } from './support/errors.ts';
import { firstTotals } from './support/live.ts';
import { clientSuite } from './support/suite.ts';

interface Tables {
  author: { id: Generated<number>; name: string; born: number | null };
  book: { id: Generated<number>; author_id: number; title: string; facts: JSONColumnType<{ pages: number }> | null };
  'live.totals': { customer: string; orders: number; amount: number };
}

const migrations: Record<string, Migration> = {
  '001_author': {
    up: (db) =>
      db.schema
        .createTable('author')
        .addColumn('id', 'serial', (column) => column.primaryKey())
        .addColumn('name', 'varchar(80)', (column) => column.notNull().unique())
        .addColumn('born', 'integer')
        .execute(),
    down: (db) => db.schema.dropTable('author').execute(),
  },
  '002_book': {
    up: async (db) => {
      await db.schema
        .createTable('book')
        .addColumn('id', 'integer', (column) => column.primaryKey().generatedAlwaysAsIdentity())
        .addColumn('author_id', 'integer', (column) => column.references('author.id').onDelete('cascade').notNull())
        .addColumn('title', 'text', (column) => column.notNull())
        .addColumn('facts', 'jsonb')
        .execute();
      await db.schema.createIndex('book_title').on('book').column('title').execute();
    },
    down: (db) => db.schema.dropTable('book').execute(),
  },
};

clientSuite<Kysely<Tables>>(
  'kysely',
  {
    open: ({ url }) =>
      new Kysely<Tables>({ dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: url, max: 5 }), cursor: Cursor }) }),
    close: (db) => db.destroy(),
  },
  ({ both, live }) => {
    // The migrator holds its advisory lock of a transaction for the whole run.
    both('migrations: up, down and up again', async (db) => {
      const migrator = new Migrator({ db, provider: { getMigrations: async () => migrations } });
      const steps = [await migrator.migrateToLatest(), await migrator.migrateDown(), await migrator.migrateToLatest()];
      expect(steps.flatMap(({ error }) => error ?? [])).toEqual([]);
      expect(steps.map(({ results }) => results?.map(({ migrationName }) => migrationName))).toEqual([
        ['001_author', '002_book'],
        ['002_book'],
        ['002_book'],
      ]);
    });

    both('introspection: schemas, tables, columns', async (db) => [
      (await db.introspection.getSchemas()).map(({ name }) => name).filter((name) => !/^(millrace|pg_)/.test(name)),
      await db.introspection.getTables(),
    ]);

    both('create, read, update, delete, with RETURNING, upsert, a CTE and JSON', async (db) => {
      const { id } = await db.insertInto('author').values({ name: 'Ada', born: 1815 }).returning('id').executeTakeFirstOrThrow();
      await db
        .insertInto('book')
        .values([
          { author_id: id, title: 'Notes', facts: JSON.stringify({ pages: 66 }) },
          { author_id: id, title: 'Letters', facts: null },
        ])
        .execute();
      await db
        .insertInto('author')
        .values({ name: 'Ada', born: 1816 })
        .onConflict((conflict) => conflict.column('name').doUpdateSet({ born: 1816 }))
        .execute();
      const updated = await db.updateTable('book').set({ title: 'Some letters' }).where('title', '=', 'Letters').executeTakeFirst();
      expect(updated.numUpdatedRows).toBe(1n);
      const rows = await db
        .with('old', (cte) => cte.selectFrom('author').selectAll().where('born', '<', 1900))
        .selectFrom('old')
        .innerJoin('book', 'book.author_id', 'old.id')
        .select(['old.name', 'old.born', 'book.title', 'book.facts'])
        .orderBy('book.title')
        .execute();
      expect((await db.deleteFrom('book').where('title', 'like', 'Some%').executeTakeFirst()).numDeletedRows).toBe(1n);
      return rows;
    });

    both('transactions: commit, rollback, savepoints of a controlled one', async (db) => {
      await db.transaction().execute((trx) => trx.insertInto('author').values({ name: 'Kept' }).execute());
      await expect(
        db
          .transaction()
          .setIsolationLevel('serializable')
          .execute(async (trx) => {
            await trx.deleteFrom('author').execute();
            throw new Error('changed our mind');
          }),
      ).rejects.toThrow('changed our mind');
      const trx = await db.startTransaction().execute();
      await trx.insertInto('author').values({ name: 'Kept too' }).execute();
      const saved = await trx.savepoint('here').execute();
      await saved.insertInto('author').values({ name: 'Undone' }).execute();
      await errorOf(sql`SELECT 1 / 0`.execute(saved));
      await saved.rollbackToSavepoint('here').execute();
      await trx.commit().execute();
      return db.selectFrom('author').select(['name', 'born']).orderBy('name').execute();
    });

    both('the pool: more queries at once than connections', async (db) => {
      const answers = await Promise.all(
        Array.from(
          { length: 40 },
          async (_, i) => (await sql<{ i: number }>`SELECT ${i}::integer AS i, pg_sleep(0.005)`.execute(db)).rows[0]?.i,
        ),
      );
      expect(answers).toEqual(Array.from({ length: 40 }, (_, i) => i));
    });

    both('a stream of rows through a cursor', async (db) => {
      let sum = 0;
      const numbers = db.selectFrom(sql<{ n: number }>`generate_series(1, 2000)`.as<'n'>(sql`s(n)`)).select('n' as never);
      for await (const row of numbers.stream(100)) sum += (row as { n: number }).n;
      expect(sum).toBe(2001000);
    });

    both('errors: every field of the server', async (db) => [
      await errorOf(db.insertInto('author').values({ name: 'Ada' }).execute()),
      await errorOf(db.insertInto('book').values({ author_id: -1, title: 'Nobody wrote this', facts: null }).execute()),
      await errorOf(
        db
          .selectFrom('author')
          .select('nam' as 'name')
          .execute(),
      ),
      await errorOf(sql`SELEC 1`.execute(db)),
    ]);

    live('a live view follows the origin, and is seen by introspection', async (db, view) => {
      for (const statement of view.statements) await sql.raw(statement).execute(db);
      const totals = (): Promise<unknown[]> =>
        db.selectFrom('live.totals').selectAll().where('orders', '>', 0).orderBy('customer').execute();
      expect(await totals()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(totals).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
      const seen = (await db.introspection.getTables()).find(({ schema, name }) => schema === 'live' && name === 'totals');
      expect(seen?.columns.map(({ name, dataType }) => `${name} ${dataType}`)).toEqual(['customer text', 'orders int4', 'amount int4']);
    });
  },
);
