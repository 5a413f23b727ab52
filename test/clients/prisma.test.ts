/**
 * Prisma: the client of the `prisma-client` generator over @prisma/adapter-pg (no engine process), `migrate deploy` with Prisma 6's
 * schema engine in WebAssembly. What needs the schema engine's binary is skipped by name where it cannot be had.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { PrismaPg } from '@prisma/adapter-pg';
import { expect, test } from 'vitest';
import { Mood, Prisma, PrismaClient } from './.cache/prisma/client.ts';
import { firstTotals } from './support/live.ts';
import type { Target } from './support/place.ts';
import { clientSuite } from './support/suite.ts';

const run = promisify(execFile);

/** Runs Prisma's command line: of Prisma 6 with its engine as WebAssembly, of Prisma 7 with the binary. */
async function prisma(target: Target, major: 6 | 7, ...args: string[]): Promise<string> {
  const folder = import.meta.dirname;
  const [name, config] = major === 6 ? ['prisma6', 'wasm.config.ts'] : ['prisma', 'prisma.config.ts'];
  const { stdout } = await run(
    process.execPath,
    [join(folder, 'node_modules', name, 'build', 'index.js'), ...args, '--config', join(folder, 'prisma', config)],
    { cwd: folder, env: { ...process.env, DATABASE_URL: target.url, CHECKPOINT_DISABLE: '1', PRISMA_HIDE_UPDATE_MESSAGE: '1' } },
  );
  return stdout;
}

const haveBinaryEngine = await fetch('https://binaries.prisma.sh/', { signal: AbortSignal.timeout(5_000) }).then(
  () => true,
  () => false,
);

/** What Prisma tells of an error: its own code, and the server's where it passes that on. */
async function problem(work: PromiseLike<unknown>): Promise<unknown> {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof Prisma.PrismaClientKnownRequestError)) throw error;
    return { code: error.code, meta: error.meta };
  }
  throw new Error('no error where one was expected');
}

clientSuite<PrismaClient>(
  'prisma',
  {
    open: ({ url }) => new PrismaClient({ adapter: new PrismaPg({ connectionString: url, max: 5 }) }),
    close: (db) => db.$disconnect(),
  },
  ({ both, live }) => {
    both('migrations: deploy', async (db, target) => {
      // Takes ten seconds, all but a fifth of one after its work: the process waits for a timer that nobody needs any more.
      expect(await prisma(target, 6, 'migrate', 'deploy')).toContain('All migrations have been successfully applied.');
      return db.$queryRaw`SELECT migration_name, finished_at IS NOT NULL AS finished, applied_steps_count FROM _prisma_migrations ORDER BY started_at`;
    });

    // Not by `db pull`: @prisma/adapter-pg knows no type "char", so that the WebAssembly engine cannot introspect, directly neither.
    both('introspection: the catalog by raw queries', (db) =>
      Promise.all([
        db.$queryRaw`SELECT table_name, column_name, udt_name::text, column_default FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2`,
        db.$queryRaw`SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1`,
      ]),
    );

    if (haveBinaryEngine) {
      both('introspection of Prisma 7: db pull', (_, target) => prisma(target, 7, 'db', 'pull', '--print'));
      both('migrations of Prisma 7: status', async (_, target) => {
        expect(await prisma(target, 7, 'migrate', 'status')).toContain('Database schema is up to date!');
      });
    } else {
      test.skip('introspection of Prisma 7: db pull (needs the schema engine binary of binaries.prisma.sh, which cannot be reached)');
      test.skip('migrations of Prisma 7: status (needs the schema engine binary of binaries.prisma.sh, which cannot be reached)');
    }

    both('create, read, update, delete, with relations, upsert, JSON, enums and groups', async (db) => {
      const ada = await db.author.create({
        data: { name: 'Ada', born: 1815, books: { create: [{ title: 'Notes', facts: { pages: 66 } }, { title: 'Letters' }] } },
        include: { books: true },
      });
      await db.author.createMany({
        data: [
          { name: 'Bob', mood: Mood.UNWELL },
          { name: "O'Neil", born: 1900 },
        ],
      });
      await db.author.upsert({ where: { name: 'Ada' }, create: { name: 'Ada' }, update: { born: { increment: 1 } } });
      await db.book.update({ where: { id: ada.books[1]?.id ?? 0 }, data: { title: 'Some letters' } });
      expect(await db.author.deleteMany({ where: { name: { startsWith: 'O' } } })).toEqual({ count: 1 });
      return [
        ada,
        await db.author.findMany({ include: { books: { orderBy: { title: 'asc' } }, _count: true }, orderBy: { name: 'asc' } }),
        await db.author.groupBy({ by: ['mood'], _count: true, _max: { born: true }, orderBy: { mood: 'asc' } }),
        await db.book.findFirst({ where: { facts: { path: ['pages'], gt: 60 }, author: { mood: 'WELL' } } }),
        await db.$queryRaw`SELECT ${1}::integer AS one, ${new Date(0)}::timestamptz AS epoch, ${[1, 2]}::integer[] AS list, 12.50::numeric AS price`,
      ];
    });

    both('transactions: a batch, an interactive one, rollback, isolation', async (db) => {
      await db.$transaction([
        db.author.create({ data: { name: 'Kept' } }),
        db.author.update({ where: { name: 'Kept' }, data: { born: 1 } }),
      ]);
      await expect(
        db.$transaction(
          async (tx) => {
            await tx.author.deleteMany();
            throw new Error('changed our mind');
          },
          { isolationLevel: 'Serializable' },
        ),
      ).rejects.toThrow('changed our mind');
      const failed = await problem(
        db.$transaction([db.author.create({ data: { name: 'Undone' } }), db.author.create({ data: { name: 'Kept' } })]),
      );
      return [failed, await db.author.findMany({ orderBy: { name: 'asc' } })];
    });

    both('the pool: more queries at once than connections, also of interactive transactions', async (db) => {
      const answers = await Promise.all(
        Array.from({ length: 30 }, async (_, i) => {
          const query = Prisma.sql`SELECT ${i}::integer AS i, pg_sleep(0.005)::text`;
          const [row] = await (i % 6 === 0
            ? db.$transaction((tx) => tx.$queryRaw<{ i: number }[]>(query), { maxWait: 20_000 })
            : db.$queryRaw<{ i: number }[]>(query));
          return row?.i;
        }),
      );
      expect(answers).toEqual(Array.from({ length: 30 }, (_, i) => i));
    });

    both('errors: what Prisma makes of those of the server', async (db) => [
      await problem(db.author.create({ data: { name: 'Ada' } })),
      await problem(db.book.create({ data: { title: 'Nobody wrote this', authorId: -1 } })),
      await problem(db.author.update({ where: { id: -1 }, data: { born: 1 } })),
      await problem(db.$queryRaw`SELECT nam FROM "Author"`),
      await problem(db.$executeRaw`SELEC 1`),
    ]);

    live('a live view follows the origin', async (db, view) => {
      for (const statement of view.statements) await db.$executeRawUnsafe(statement);
      const totals = (): Promise<unknown> => db.$queryRaw`SELECT * FROM live.totals WHERE orders > ${0} ORDER BY customer`;
      expect(await totals()).toEqual(firstTotals);
      await view.order('bob', 7);
      await expect.poll(totals).toEqual([firstTotals[0], { customer: 'bob', orders: 2, amount: 12 }]);
    });
  },
);
