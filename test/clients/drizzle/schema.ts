/** The tables that drizzle-kit makes migrations of and Drizzle's queries are typed by. */
import { index, integer, jsonb, pgEnum, pgSchema, pgTable, serial, text, timestamp, varchar } from 'drizzle-orm/pg-core';

export const mood = pgEnum('mood', ['well', 'unwell']);

export const authors = pgTable('authors', {
  id: serial().primaryKey(),
  name: varchar({ length: 80 }).notNull().unique(),
  born: integer(),
  mood: mood().notNull().default('well'),
});

export const books = pgTable(
  'books',
  {
    id: integer().primaryKey().generatedAlwaysAsIdentity(),
    authorId: integer('author_id')
      .notNull()
      .references(() => authors.id, { onDelete: 'cascade' }),
    title: text().notNull(),
    tags: text().array(),
    facts: jsonb().$type<{ pages: number }>(),
    added: timestamp({ withTimezone: true }),
  },
  (table) => [index('books_by_title').on(table.title)],
);

/** Made by Millrace: in the queries, not in the migrations. */
export const totals = pgSchema('live').table('totals', { customer: text(), orders: integer(), amount: integer() });
