/**
 * The schema engine as WebAssembly over node-postgres: nothing to download. Only Prisma 6 has this setting; its engine reads the same
 * schema and migrations, but wants a URL (not used) where Prisma 7 allows none.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PrismaPg } from '@prisma/adapter-pg';
import { defineConfig } from 'prisma6/config';

const cache = join(import.meta.dirname, '..', '.cache');
const schema = join(cache, 'prisma6.prisma');
mkdirSync(cache, { recursive: true });
writeFileSync(
  schema,
  readFileSync(join(import.meta.dirname, 'schema.prisma'), 'utf8').replace('"postgresql"', '"postgresql"\n  url = "postgresql://not/used"'),
);

export default defineConfig({
  experimental: { adapter: true },
  engine: 'js',
  schema,
  migrations: { path: join(import.meta.dirname, 'migrations') },
  adapter: async () => new PrismaPg({ connectionString: process.env['DATABASE_URL'] ?? '' }),
});
