/** Knex: its migrations, query builder, transactions with savepoints, pool (tarn) and streams. */
import knexModule, { type Knex } from 'knex';
import { expect } from 'vitest';
import { errorOf } from './support/errors.ts';
import { firstTotals } from './support/live.ts';
import { clientSuite } from './support/suite.ts';

const { knex } = knexModule;

interface Author {
  id: number;
  name: string;
  born: number | null;
}

/** Migrations in code, as bundled applications have them. */
const migrations: Record<string, Knex.Migration> = {
  '001_authors': {
    up: (db) =>
      db.schema.createTable('authors', (table) => {
        table.increments('id');
        table.string('name', 100).notNullable().unique();
        table.integer('born');
      }),
    down: (db) => db.schema.dropTable('authors'),
  },
  '002_books': {
    up: async (db) => {
      await db.schema.createTable('books', (table) => {
        table.increments('id');
        table.integer('author_id').notNullable().references('authors.id').onDelete('CASCADE');
        table.text('title').notNullable();
        table.jsonb('tags');
        table.timestamp('added').defaultTo('2024-02-29 12:00+00');
      });
      await db.schema.alterTable('books', (table) => table.index(['title'], 'books_by_title'));
    },
    down: (db) => db.schema.dropTable('books'),
  },
};

const migrationSource: Knex.MigrationSource<string> = {
  getMigrations: async () => Object.keys(migrations),
  getMigrationName: (name) => name,
  getMigration: async (name) => migrations[name] as Knex.Migration,
};

clientSuite<Knex>(
  'knex',
  {
    open: ({ url }) => knex({ client: 'pg', connection: url, pool: { min: 0, max: 5 }, migrations: { migrationSource } }),
    close: (db) => db.destroy(),
  },
  ({ both, live }) => {
    both('migrations: to the latest, back, and to the latest again', async (db) => {
      expect((await db.migrate.latest())[1]).toEqual(['001_authors', '002_books']);
      expect((await db.migrate.rollback())[1]).toEqual(['002_books', '001_authors']);
      expect(await db.schema.hasTable('authors')).toBe(false);
      await db.migrate.latest();
      expect(await db.migrate.currentVersion()).toBe('002');
      return db('knex_migrations').select('name', 'batch').orderBy('id');
    });

    both('introspection: tables, columns and their defaults', async (db) => {
      expect(await db.schema.hasTable('books')).toBe(true);
      expect(await db.schema.hasColumn('books', 'tags')).toBe(true);
      return db('books').columnInfo();
    });

    both('create, read, update, delete, with RETURNING, upsert and JSON', async (db) => {
      const [ada] = await db<Author>('authors').insert({ name: 'Ada', born: 1815 }).returning('*');
      await db('books').insert([
        { author_id: ada?.id, title: 'Notes', tags: JSON.stringify(['engine', 'numbers']) },
        { author_id: ada?.id, title: 'Letters', tags: null },
      ]);
      await db<Author>('authors').insert({ name: 'Ada', born: 1816 }).onConflict('name').merge(['born']);
      await db('books').where({ title: 'Letters' }).update({ title: 'Some letters' });
      const joined = await db('books')
        .join('authors', 'authors.id', 'books.author_id')
        .select('title', 'name', 'born', 'tags')
        .orderBy('title');
      expect(await db('books').where('title', 'like', 'Some%').delete()).toBe(1);
      return joined;
    });

    both('transactions: commit, rollback, a nested one that is a savepoint', async (db) => {
      await db.transaction(async (trx) => {
        await trx<Author>('authors').insert({ name: 'Kept', born: 1 });
        await trx
          .transaction(async (inner) => {
            await inner<Author>('authors').insert({ name: 'Undone', born: 2 });
            throw new Error('changed our mind');
          })
          .catch(() => undefined);
        await trx.transaction((inner) => inner<Author>('authors').insert({ name: 'Kept too', born: 3 }));
      });
      await expect(
        db.transaction(async (trx) => {
          await trx('authors').delete();
          await trx.raw('SELECT 1/0');
        }),
      ).rejects.toThrow('division by zero');
      const isolated = await db.transaction((trx) => trx.raw('SHOW transaction_isolation'), { isolationLevel: 'serializable' });
      expect(isolated.rows).toEqual([{ transaction_isolation: 'serializable' }]);
      return db<Author>('authors').select('name', 'born').orderBy('name');
    });

    both('the pool: more queries at once than connections', async (db) => {
      const answers = await Promise.all(
        Array.from({ length: 40 }, (_, i) => db.raw('SELECT ?::integer AS i, pg_sleep(0.005)', [i]).then(({ rows }) => rows[0].i)),
      );
      expect(answers).toEqual(Array.from({ length: 40 }, (_, i) => i));
    });

    both('a stream of rows, and one that is given up halfway', async (db) => {
      const sum = { all: 0, some: 0 };
      for await (const { n } of db.select(db.raw('generate_series(1, 3000) AS n')).stream({ highWaterMark: 50 })) sum.all += n;
      for await (const { n } of db.select(db.raw('generate_series(1, 3000) AS n')).stream({ highWaterMark: 50 })) {
        if (n > 10) break;
        sum.some += n;
      }
      expect(sum).toEqual({ all: 4501500, some: 55 });
      return (await db.raw('SELECT 1 AS still_there')).rows;
    });

    both('errors: every field of the server', async (db) => [
      await errorOf(db<Author>('authors').insert({ name: 'Ada' })),
      await errorOf(db('books').insert({ author_id: -1, title: 'Nobody wrote this' })),
      await errorOf(db('books').insert({ title: null })),
      await errorOf(db.raw('SELECT nothing FROM authors')),
      await errorOf(db.raw("SELECT format('%s')")),
      await errorOf(db.raw('SELEC 1')),
    ]);

    live('a live view follows the origin', async (db, view) => {
      for (const statement of view.statements) await db.raw(statement);
      const totals = (): Promise<unknown[]> => db.withSchema('live').from('totals').select('*').orderBy('customer');
      expect(await totals()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(totals).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
      expect(Object.keys(await db.withSchema('live').table('totals').columnInfo())).toEqual(['customer', 'orders', 'amount']);
    });
  },
);
