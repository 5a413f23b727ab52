/** Drizzle over node-postgres: drizzle-kit's migrate, push and pull, the migrator, queries, transactions, prepared statements. */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { asc, count, eq, gt, like, sql } from 'drizzle-orm';
import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres';
import { migrate } from 'drizzle-orm/node-postgres/migrator';
import pg from 'pg';
import { expect } from 'vitest';
import { authors, books, totals } from './drizzle/schema.ts';
import { errorOf } from './support/errors.ts';
import { firstTotals } from './support/live.ts';
import type { Target } from './support/place.ts';
import { clientSuite } from './support/suite.ts';

type Database = NodePgDatabase & { $client: pg.Pool };
const here = import.meta.dirname;

/** Runs drizzle-kit's command line; `out` is where it writes, relative to this folder. */
async function kit(target: Target, out: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [join(here, 'node_modules', 'drizzle-kit', 'bin.cjs'), ...args, '--config', 'drizzle/drizzle.config.ts'],
    { cwd: here, env: { ...process.env, DATABASE_URL: target.url, DRIZZLE_OUT: out } },
  );
  return stdout;
}

clientSuite<Database>(
  'drizzle',
  {
    open: ({ url }) => drizzle({ client: new pg.Pool({ connectionString: url, max: 5 }) }),
    close: (db) => db.$client.end(),
  },
  ({ both, live }) => {
    both('migrations: by the migrator, then drizzle-kit migrate and push find nothing to do', async (db, target) => {
      await migrate(db, { migrationsFolder: join(here, 'drizzle', 'migrations') });
      expect(await kit(target, './drizzle/migrations', 'migrate')).toContain('migrations applied successfully');
      expect(await kit(target, './drizzle/migrations', 'push', '--force')).toContain('No changes detected');
      return (await db.execute(sql`SELECT hash, created_at FROM drizzle.__drizzle_migrations`)).rows;
    });

    both('introspection: drizzle-kit pull writes the schema', async (_, target) => {
      const out = mkdtempSync(join(here, '.cache', 'drizzle-'));
      try {
        await kit(target, `./.cache/${out.split(/[\\/]/).at(-1)}`, 'pull');
        return readFileSync(join(out, 'schema.ts'), 'utf8');
      } finally {
        rmSync(out, { recursive: true });
      }
    });

    both('create, read, update, delete, with RETURNING, upsert, joins and a count', async (db) => {
      const inserted = await db
        .insert(authors)
        .values([{ name: 'Ada', born: 1815 }, { name: 'Bob', mood: 'unwell' }, { name: "O'Neil" }])
        .returning();
      await db.insert(books).values([
        { authorId: inserted[0]?.id ?? 0, title: 'Notes', tags: ['a', 'b"c'], facts: { pages: 66 }, added: new Date(0) },
        { authorId: inserted[0]?.id ?? 0, title: 'Letters' },
      ]);
      await db
        .insert(authors)
        .values({ name: 'Ada' })
        .onConflictDoUpdate({ target: authors.name, set: { born: sql`${authors.born} + 1` } });
      await db.update(books).set({ title: 'Some letters' }).where(eq(books.title, 'Letters'));
      expect((await db.delete(authors).where(like(authors.name, 'O%'))).rowCount).toBe(1);
      return [
        inserted,
        await db.select().from(books).innerJoin(authors, eq(authors.id, books.authorId)).orderBy(asc(books.title)),
        await db.select({ mood: authors.mood, n: count() }).from(authors).groupBy(authors.mood).orderBy(authors.mood),
        await db.$count(authors, gt(authors.born, 1800)),
      ];
    });

    both('transactions: commit, rollback, a nested one that is a savepoint', async (db) => {
      await db.transaction(async (tx) => {
        await tx.insert(authors).values({ name: 'Kept' });
        await tx
          .transaction(async (inner) => {
            await inner.insert(authors).values({ name: 'Undone' });
            inner.rollback();
          })
          .catch(() => undefined);
      });
      await expect(
        db.transaction(
          async (tx) => {
            await tx.delete(authors);
            throw new Error('changed our mind');
          },
          { isolationLevel: 'serializable' },
        ),
      ).rejects.toThrow('changed our mind');
      return db.select().from(authors).orderBy(authors.name);
    });

    both('prepared statements under a name, from several connections of the pool at once', async (db) => {
      const byName = db
        .select()
        .from(authors)
        .where(eq(authors.name, sql.placeholder('name')))
        .prepare('author_by_name');
      return Promise.all(Array.from({ length: 40 }, (_, i) => byName.execute({ name: ['Ada', 'Bob', 'Nobody'][i % 3] })));
    });

    both('errors: every field of the server', async (db) => [
      await errorOf(db.insert(authors).values({ name: 'Ada' })),
      await errorOf(db.insert(books).values({ authorId: -1, title: 'Nobody wrote this' })),
      await errorOf(db.execute(sql`INSERT INTO authors (mood) VALUES (${'furious'})`)),
      await errorOf(db.execute(sql`SELECT nam FROM authors`)),
      await errorOf(db.execute(sql`SELEC 1`)),
    ]);

    live('a live view follows the origin, in a typed query', async (db, view) => {
      for (const statement of view.statements) await db.execute(sql.raw(statement));
      const rows = (): Promise<unknown[]> => db.select().from(totals).where(gt(totals.orders, 0)).orderBy(totals.customer);
      expect(await rows()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(rows).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
    });
  },
);
