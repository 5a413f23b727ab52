/** A stage where there is something of every kind to be mistaken for something else. */
import { expect } from 'vitest';
import { type Stage, simpleSource, type TestClient } from './stage.ts';

export async function somethingOfEverything(stage: Stage, client: TestClient): Promise<void> {
  const origin = await simpleSource(stage, client);
  await origin.query(`
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TYPE pair AS (x int, y int);
    CREATE TABLE moods (id int PRIMARY KEY, m mood, p pair, "Mixed" int);
    CREATE TABLE no_identity (a int); ALTER TABLE no_identity REPLICA IDENTITY NOTHING;
    CREATE TABLE "Upper" (a int);
    CREATE SCHEMA other; CREATE TABLE other.twice (a int); CREATE SCHEMA other2; CREATE TABLE other2.twice (a int);
    CREATE TABLE unpublished (a int);
    CREATE PUBLICATION narrow FOR TABLE t;
  `);
  await client.query(`
    CREATE SECRET sec AS 'x';
    CREATE SOURCE narrow FROM POSTGRES CONNECTION c (PUBLICATION 'narrow');
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t);
    CREATE MATERIALIZED VIEW v AS SELECT sum(a) FROM t;
    CREATE TABLE ordinary (a int);
    CREATE VIEW plain AS SELECT 1 AS a;
  `);
}

/** What each statement is refused with. */
export async function refusals(client: TestClient, statements: readonly string[]): Promise<string[]> {
  const answers: string[] = [];
  for (const statement of statements) {
    answers.push(await client.failure(statement).catch((error: unknown) => (error instanceof Error ? error.message : String(error))));
  }
  return answers;
}

/** The session and the engine go on. */
export async function goesOn(client: TestClient): Promise<void> {
  expect(await client.rows('SELECT count(*)::int FROM t')).toEqual([[2]]);
  expect(await client.rows("SELECT count(*)::int FROM millrace.sources WHERE status = 'running'")).toEqual([[2]]);
}
