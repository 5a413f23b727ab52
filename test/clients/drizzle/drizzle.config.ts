import { defineConfig } from 'drizzle-kit';

export default defineConfig({
  dialect: 'postgresql',
  schema: './drizzle/tables.ts',
  // Where `generate` wrote the migrations; `pull` writes elsewhere.
  out: process.env['DRIZZLE_OUT'] ?? './drizzle/migrations',
  dbCredentials: { url: process.env['DATABASE_URL'] ?? '' },
});
