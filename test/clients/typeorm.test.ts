/** TypeORM: migrations, entities by schema, schema comparison, query runners with savepoints, streams. */
import { DataSource, EntitySchema, type MigrationInterface, type QueryRunner, Table } from 'typeorm';
import { expect } from 'vitest';
import { errorOf } from './support/errors.ts';
import { firstTotals } from './support/live.ts';
import { clientSuite } from './support/suite.ts';

interface Author {
  id: number;
  name: string;
  born: number | null;
  books: Book[];
}
interface Book {
  id: number;
  title: string;
  facts: { pages: number } | null;
  author: Author;
}

const Authors = new EntitySchema<Author>({
  name: 'author',
  columns: {
    id: { type: 'integer', primary: true, generated: 'increment' },
    name: { type: 'character varying', length: 80, unique: true },
    born: { type: 'integer', nullable: true },
  },
  relations: { books: { type: 'one-to-many', target: 'book', inverseSide: 'author', cascade: true } },
});
const Books = new EntitySchema<Book>({
  name: 'book',
  columns: {
    id: { type: 'integer', primary: true, generated: 'increment' },
    title: { type: 'text' },
    facts: { type: 'jsonb', nullable: true },
  },
  relations: { author: { type: 'many-to-one', target: 'author', inverseSide: 'books', onDelete: 'CASCADE' } },
});
const Totals = new EntitySchema<{ customer: string; orders: number; amount: number }>({
  name: 'totals',
  schema: 'live',
  synchronize: false,
  columns: { customer: { type: 'text', primary: true }, orders: { type: 'integer' }, amount: { type: 'integer' } },
});

class Authors1700000000001 implements MigrationInterface {
  async up(runner: QueryRunner): Promise<void> {
    await runner.createTable(
      new Table({
        name: 'draft',
        columns: [
          { name: 'id', type: 'integer', isPrimary: true, isGenerated: true, generationStrategy: 'increment' },
          { name: 'text', type: 'text', isNullable: true, default: "'it''s empty'" },
        ],
        indices: [{ columnNames: ['text'], name: 'draft_text' }],
      }),
    );
  }
  async down(runner: QueryRunner): Promise<void> {
    await runner.dropTable('draft');
  }
}
class Drafts1700000000002 implements MigrationInterface {
  async up(runner: QueryRunner): Promise<void> {
    await runner.query('ALTER TABLE draft ADD stamp timestamptz; ALTER TABLE draft RENAME TO drafts');
  }
  async down(runner: QueryRunner): Promise<void> {
    await runner.query('ALTER TABLE drafts RENAME TO draft; ALTER TABLE draft DROP stamp');
  }
}

clientSuite<DataSource>(
  'typeorm',
  {
    open: ({ url }) =>
      new DataSource({
        type: 'postgres',
        url,
        poolSize: 5,
        entities: [Authors, Books, Totals],
        migrations: [Authors1700000000001, Drafts1700000000002],
      }).initialize(),
    close: (db) => db.destroy(),
  },
  ({ both, live }) => {
    both('migrations: run, undo the last, run again', async (db) => {
      expect((await db.runMigrations()).map(({ name }) => name)).toEqual(['Authors1700000000001', 'Drafts1700000000002']);
      await db.undoLastMigration();
      expect(await db.showMigrations()).toBe(true);
      await db.runMigrations({ transaction: 'each' });
      return db.query('SELECT name FROM migrations ORDER BY id');
    });

    both('a schema made from the entities needs no change afterwards', async (db) => {
      const planned = (await db.driver.createSchemaBuilder().log()).upQueries.map(({ query }) => query);
      await db.synchronize();
      expect((await db.driver.createSchemaBuilder().log()).upQueries).toEqual([]);
      return planned;
    });

    both('introspection: a table with its columns, keys and indexes', async (db) => {
      const runner = db.createQueryRunner();
      const found = await runner.getTable('book');
      const none = await runner.hasTable('nothing');
      await runner.release();
      return [
        found?.columns.map(({ name, type, isNullable, isPrimary, default: fallback }) => ({ name, type, isNullable, isPrimary, fallback })),
        found?.foreignKeys.map(({ columnNames, referencedTableName, onDelete }) => ({ columnNames, referencedTableName, onDelete })),
        none,
      ];
    });

    both('create, read, update, delete, with relations, upsert and a query builder', async (db) => {
      await db.getRepository(Authors).save({
        name: 'Ada',
        born: 1815,
        books: [{ title: 'Notes', facts: { pages: 66 } }, { title: 'Letters' }] as Book[],
      });
      await db.getRepository(Authors).upsert([{ name: 'Ada', born: 1816 }, { name: 'Bob' }], ['name']);
      await db.getRepository(Books).update({ title: 'Letters' }, { title: 'Some letters' });
      expect((await db.getRepository(Authors).delete({ name: 'Bob' })).affected).toBe(1);
      return [
        await db.getRepository(Authors).find({ relations: { books: true }, order: { books: { title: 'ASC' } } }),
        await db
          .getRepository(Books)
          .createQueryBuilder('b')
          .innerJoin('b.author', 'a')
          .select(['b.title AS title', 'a.name AS name'])
          .where('a.born > :year', { year: 1800 })
          .orderBy('b.title')
          .getRawMany(),
      ];
    });

    both('transactions: commit, rollback, a nested one that is a savepoint', async (db) => {
      await db.transaction(async (manager) => {
        await manager.save(Authors, { name: 'Kept' });
        await manager
          .transaction(async (inner) => {
            await inner.save(Authors, { name: 'Undone' });
            await inner.query('SELECT 1/0');
          })
          .catch(() => undefined);
      });
      await expect(
        db.transaction('SERIALIZABLE', async (manager) => {
          await manager.delete(Authors, { name: 'Kept' });
          throw new Error('changed our mind');
        }),
      ).rejects.toThrow('changed our mind');
      return db.getRepository(Authors).find({ order: { name: 'ASC' } });
    });

    both('the pool: more queries at once than connections', async (db) => {
      const answers = await Promise.all(
        Array.from({ length: 40 }, (_, i) => db.query('SELECT $1::integer AS i, pg_sleep(0.005)', [i]).then(([row]) => row.i)),
      );
      expect(answers).toEqual(Array.from({ length: 40 }, (_, i) => i));
    });

    both('a stream of rows', async (db) => {
      const runner = db.createQueryRunner();
      let sum = 0;
      for await (const { n } of await runner.stream('SELECT generate_series(1, 3000) AS n')) sum += n;
      await runner.release();
      expect(sum).toBe(4501500);
    });

    both('errors: every field of the server', async (db) => [
      await errorOf(db.getRepository(Authors).insert({ name: 'Ada' })),
      await errorOf(db.getRepository(Books).insert({ title: 'Nobody wrote this', author: { id: -1 } })),
      await errorOf(db.query('SELECT nam FROM author')),
      await errorOf(db.query('INSERT INTO author (name) VALUES ($1)', [null])),
      await errorOf(db.query('SELEC 1')),
    ]);

    live('a live view follows the origin, as an entity', async (db, view) => {
      for (const statement of view.statements) await db.query(statement);
      const totals = (): Promise<unknown[]> => db.getRepository(Totals).find({ order: { customer: 'ASC' } });
      expect(await totals()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(totals).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
    });
  },
);
