/** Sequelize: migrations by umzug over its queryInterface, models, transactions with savepoints, pool. */
import {
  type CreationOptional,
  DataTypes,
  type InferAttributes,
  type InferCreationAttributes,
  type Model,
  Op,
  QueryTypes,
  Sequelize,
  Transaction,
} from 'sequelize';
import { SequelizeStorage, Umzug } from 'umzug';
import { expect } from 'vitest';
import { errorOf } from './support/errors.ts';
import { firstTotals } from './support/live.ts';
import { clientSuite } from './support/suite.ts';

interface Author extends Model<InferAttributes<Author>, InferCreationAttributes<Author>> {
  id: CreationOptional<number>;
  name: string;
  born: number | null;
}

const authors = (db: Sequelize) =>
  db.define<Author>(
    'author',
    {
      id: { type: DataTypes.INTEGER, primaryKey: true, autoIncrement: true },
      name: { type: DataTypes.STRING(80), allowNull: false },
      born: DataTypes.INTEGER,
    },
    { tableName: 'authors', timestamps: false },
  );

const migrator = (db: Sequelize) =>
  new Umzug({
    context: db.getQueryInterface(),
    storage: new SequelizeStorage({ sequelize: db }),
    logger: undefined,
    migrations: [
      {
        name: '001_authors',
        up: ({ context }) =>
          context.createTable('authors', {
            id: { type: DataTypes.INTEGER, primaryKey: true, autoIncrement: true },
            name: { type: DataTypes.STRING(80), allowNull: false, unique: true },
          }),
        down: ({ context }) => context.dropTable('authors'),
      },
      {
        name: '002_born',
        up: async ({ context }) => {
          await context.addColumn('authors', 'born', { type: DataTypes.INTEGER, allowNull: true, comment: 'the year' });
          await context.addColumn('authors', 'mood', { type: DataTypes.ENUM('well', 'unwell'), defaultValue: 'well' });
          await context.addIndex('authors', ['born']);
        },
        down: async ({ context }) => {
          await context.removeColumn('authors', 'mood');
          await context.sequelize.query('DROP TYPE enum_authors_mood');
          await context.removeColumn('authors', 'born');
        },
      },
    ],
  });

clientSuite<Sequelize>(
  'sequelize',
  {
    open: ({ url }) => new Sequelize(url, { logging: false, pool: { max: 5 } }),
    close: (db) => db.close(),
  },
  ({ both, live }) => {
    both('migrations: up, down and up again', async (db) => {
      const umzug = migrator(db);
      expect((await umzug.up()).map(({ name }) => name)).toEqual(['001_authors', '002_born']);
      expect((await umzug.down()).map(({ name }) => name)).toEqual(['002_born']);
      await umzug.up();
      return (await umzug.executed()).map(({ name }) => name);
    });

    both('introspection: version, tables, columns, indexes, constraints', async (db) => {
      const queries = db.getQueryInterface();
      const indexes = (await queries.showIndex('authors')) as { name: string; unique: boolean; definition: string }[];
      return [
        await db.databaseVersion(),
        (await queries.showAllTables()).filter((name) => !/^millrace/.test(String(name))),
        await queries.describeTable('authors'),
        indexes.map(({ name, unique, definition }) => ({ name, unique, definition })),
      ];
    });

    both('create, read, update, delete, upsert and increments', async (db) => {
      const Authors = authors(db);
      const ada = await Authors.create({ name: 'Ada', born: 1815 });
      await Authors.bulkCreate([
        { name: 'Bob', born: null },
        { name: "O'Neil", born: 1900 },
      ]);
      await ada.update({ born: 1816 });
      await ada.increment('born', { by: 2 });
      const [found, created] = await Authors.findOrCreate({ where: { name: 'Cy' }, defaults: { name: 'Cy', born: 5 } });
      await Authors.upsert({ id: found.id, name: 'Cy', born: 6 });
      await Authors.destroy({ where: { born: null } });
      const { rows, count } = await Authors.findAndCountAll({ where: { born: { [Op.gt]: 5 } }, order: ['name'], limit: 2, raw: true });
      return [created, rows, count, await Authors.max('born')];
    });

    both('transactions: commit, rollback, a nested one that is a savepoint', async (db) => {
      const Authors = authors(db);
      await db.transaction(async (transaction) => {
        await Authors.create({ name: 'Kept', born: 1 }, { transaction });
        await db
          .transaction({ transaction }, async (inner) => {
            await Authors.create({ name: 'Undone', born: 2 }, { transaction: inner });
            throw new Error('changed our mind');
          })
          .catch(() => undefined);
      });
      await expect(
        db.transaction({ isolationLevel: Transaction.ISOLATION_LEVELS.SERIALIZABLE }, async (transaction) => {
          await Authors.destroy({ where: {}, transaction });
          await db.query('SELECT 1/0', { transaction });
        }),
      ).rejects.toThrow('division by zero');
      const locked = await db.transaction((transaction) =>
        Authors.findAll({ where: { name: 'Kept' }, lock: transaction.LOCK.UPDATE, skipLocked: true, transaction, raw: true }),
      );
      return [locked, await Authors.findAll({ order: ['name'], raw: true })];
    });

    both('the pool: more queries at once than connections', async (db) => {
      const answers = await Promise.all(
        Array.from({ length: 40 }, (_, i) =>
          db
            .query<{ i: number }>('SELECT $i::integer AS i, pg_sleep(0.005)', { bind: { i }, type: QueryTypes.SELECT })
            .then(([row]) => row?.i),
        ),
      );
      expect(answers).toEqual(Array.from({ length: 40 }, (_, i) => i));
    });

    both('errors: every field of the server', async (db) => [
      await errorOf(authors(db).create({ name: 'Ada', born: 1 })),
      await errorOf(db.query('INSERT INTO authors (name) VALUES (NULL)')),
      await errorOf(db.query('SELECT nam FROM authors')),
      await errorOf(db.query("SELECT 'x'::integer")),
      await errorOf(db.query('SELEC 1')),
    ]);

    live('a live view follows the origin, as a model', async (db, view) => {
      for (const statement of view.statements) await db.query(statement);
      const Totals = db.define(
        'total',
        { customer: { type: DataTypes.TEXT, primaryKey: true }, orders: DataTypes.INTEGER, amount: DataTypes.INTEGER },
        { schema: 'live', tableName: 'totals', timestamps: false },
      );
      const totals = (): Promise<unknown[]> => Totals.findAll({ order: ['customer'], raw: true });
      expect(await totals()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(totals).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
    });
  },
);
