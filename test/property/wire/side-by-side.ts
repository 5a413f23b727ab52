/** One pipeline said to Postgres and, beside it, to Millrace before the same server. */
import pg from 'pg';
import type { TestPostgres } from '../../support/postgres.ts';
import { type Conversation, converse, cut } from './conversation.ts';
import { finale, type Pipeline, preparation, type Step, simple } from './pipeline-steps.ts';
import { replies } from './replies.ts';

export interface SideBySide {
  readonly there: Conversation;
  readonly here: Conversation;
  /** Of Postgres. */
  readonly expected: readonly string[];
  /** Of Millrace. */
  readonly got: readonly string[];
  /** How many replies of both can be compared: a server that hangs up on a client that still talks may take its last words with it. */
  readonly comparable: number;
}

/** Each side has a database of its own, or they would see each other's notifications and locks. */
export async function createSides(postgres: TestPostgres): Promise<void> {
  const direct = new pg.Client(postgres.url);
  await direct.connect();
  await direct.query('CREATE DATABASE one');
  await direct.query('CREATE DATABASE two');
  await direct.end();
}

/** `loosely`: messages are compared in place of bytes. */
export async function saidToBoth(
  postgres: { readonly port: number },
  millrace: { readonly port: number },
  { steps, sizes }: Pipeline,
  loosely: boolean,
): Promise<SideBySide> {
  const all: readonly Step[] = [simple({ millrace: preparation, postgres: preparation }), ...steps, ...finale];
  const [there, here] = await Promise.all([
    converse(postgres.port, cut(Buffer.concat(all.map((one) => one.postgres)), sizes), { database: 'one' }),
    converse(millrace.port, cut(Buffer.concat(all.map((one) => one.millrace)), sizes), { database: 'two' }),
  ]);
  const expected = replies(there.bytes, loosely);
  const got = replies(here.bytes, loosely);
  const ended = there.bytes.includes('the_end') || here.bytes.includes('the_end');
  return { there, here, expected, got, comparable: ended ? Infinity : Math.min(expected.length, got.length) };
}
