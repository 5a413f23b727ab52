/**
 * Random pipelines bring the same replies from Millrace as from Postgres: bytes for ordinary SQL, messages where a statement is extended.
 * MILLRACE_PIPELINE_ROUNDS for more of them, MILLRACE_SEED to see the same again.
 */
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorFields } from '../../../src/wire/decode.ts';
import type { Worker } from '../../../src/wire/worker.ts';
import { startProxy } from '../../integration/wire/proxy.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { converse, cut } from './conversation.ts';
import { finale, type Pipeline, pipelines, preparation, runner, type Step, simple } from './pipeline-steps.ts';
import { found, foundInBlocks } from './pipelines-found.ts';

const rounds = Number(process.env['MILLRACE_PIPELINE_ROUNDS'] ?? 200);
const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000_000);

/** A COPY that is in the way of a candidate ends the connection by the first message it sees, which is then one of ours. */
const unexpected = /type 0x\w\w during COPY/;

/** Replies as lines. `loosely`: without what Millrace cannot know of a statement of its own: its source line, its context. */
function replies(bytes: Buffer, loosely: boolean): string[] {
  const lines: string[] = [];
  for (let at = 0; at + 5 <= bytes.length; ) {
    const next = at + 1 + bytes.readInt32BE(at + 1);
    const tag = String.fromCharCode(bytes.readUInt8(at));
    const message = bytes.subarray(at, next);
    let body = message
      .toString('latin1', 5)
      .replace(/pg_temp_\d+/, 'pg_temp')
      .replace(unexpected, 'type during COPY');
    if (loosely && (tag === 'E' || tag === 'N')) {
      const { S, V, C, M, D, H, P } = errorFields(message, 'latin1');
      body = JSON.stringify({ S, V, C, M: M?.replace(unexpected, 'type during COPY'), D, H, P });
    } else if (loosely && tag === 'C') body = body.replace(/^(DO|CREATE SECRET)\0/, 'DONE').replace(/^(SHOW|EXPLAIN|SELECT \d+)\0/, 'ROWS');
    else if (tag === 'T') body = columns(message, loosely);
    lines.push(`${tag} ${body.length > 300 ? `${body.slice(0, 300)}... ${body.length}` : body}`);
    at = next;
  }
  // The last CommandComplete of a text waits for the commit, at which the server also reports parameters.
  const isReport = (line: string): boolean => line.startsWith('S ');
  return loosely ? [...lines.filter((line) => !isReport(line)), ...lines.filter(isReport)] : lines;
}

/** A RowDescription without the OIDs of tables, which are not the same on both sides; `loosely` also without columns and modifiers. */
function columns(message: Buffer, loosely: boolean): string {
  const shown: string[] = [];
  for (let at = 7; at < message.length; ) {
    const end = message.indexOf(0, at);
    const origin = loosely ? '' : message.toString('hex', end + 5, end + 7);
    const modifier = loosely ? '' : message.readInt32BE(end + 13);
    shown.push(
      [message.toString('latin1', at, end), origin, message.readInt32BE(end + 7), modifier, message.readInt16BE(end + 17)].join(' '),
    );
    at = end + 19;
  }
  return shown.join(', ');
}

describe.each<PostgresMajor>([18, 15])('a pipeline, on PostgreSQL %i', (version) => {
  let postgres: TestPostgres;
  let proxy: Worker;
  beforeAll(async () => {
    postgres = await startPostgres({ version });
    proxy = await startProxy(postgres.address, runner);
    const direct = new pg.Client(postgres.url);
    await direct.connect();
    // Each side has its own, or they would see each other's notifications and locks.
    await direct.query('CREATE DATABASE one');
    await direct.query('CREATE DATABASE two');
    await direct.end();
  });
  afterAll(async () => {
    await proxy?.stop(0);
    await postgres?.stop();
  });

  async function compare({ steps, sizes }: Pipeline, loosely: boolean): Promise<void> {
    const all: readonly Step[] = [simple({ millrace: preparation, postgres: preparation }), ...steps, ...finale];
    const [there, here] = await Promise.all([
      converse(postgres.port, cut(Buffer.concat(all.map((one) => one.postgres)), sizes), { database: 'one' }),
      converse(proxy.port, cut(Buffer.concat(all.map((one) => one.millrace)), sizes), { database: 'two' }),
    ]);
    const expected = replies(there.bytes, loosely);
    const got = replies(here.bytes, loosely);
    // A server that hangs up on a client that still talks may take its last words with it.
    const common = there.bytes.includes('the_end') || here.bytes.includes('the_end') ? Infinity : Math.min(expected.length, got.length);
    expect(here.stalled).toBe(there.stalled);
    expect(got.slice(0, common)).toEqual(expected.slice(0, common));
  }

  async function check(share: number, count: number): Promise<void> {
    await fc.assert(
      fc.asyncProperty(
        pipelines(share, share === 0 || version >= 18).map((one) => ({
          ...one,
          toString: () => one.steps.map((part) => part.label).join('\n'),
        })),
        (one) => compare(one, share > 0),
      ),
      { numRuns: count, seed, interruptAfterTimeLimit: 50_000 },
    );
  }

  it.each(Object.entries(version >= 18 ? { ...found, ...foundInBlocks } : found))('once differed: %s', async (_, steps) => {
    for (const sizes of [[10_000], [7]]) await compare({ steps, sizes }, true);
  });

  it('of ordinary SQL brings the same bytes', () => check(0, rounds));
  it('with extended statements brings the same replies', () => check(3, rounds));
});
