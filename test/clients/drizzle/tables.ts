/** What drizzle-kit is to look after. */
export { authors, books, mood } from './schema.ts';
