/**
 * Random pipelines bring the same replies from Millrace as from Postgres: bytes for ordinary SQL, messages where a statement is extended.
 * MILLRACE_PIPELINE_ROUNDS for more of them (and MILLRACE_PIPELINE_SECONDS, in which they have to fit), MILLRACE_SEED to see the same again.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startProxy, type TestProxy } from '../../integration/wire/proxy.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { type Pipeline, pipelines, runner } from './pipeline-steps.ts';
import { driverFlows, found, foundInBlocks } from './pipelines-found.ts';
import { createSides, saidToBoth } from './side-by-side.ts';

const rounds = Number(process.env['MILLRACE_PIPELINE_ROUNDS'] ?? 200);
const seconds = Number(process.env['MILLRACE_PIPELINE_SECONDS'] ?? 50);
const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000_000);

describe.each<PostgresMajor>([18, 15])('a pipeline, on PostgreSQL %i', (version) => {
  let postgres: TestPostgres;
  let proxy: TestProxy;
  beforeAll(async () => {
    postgres = await startPostgres({ version });
    proxy = await startProxy(postgres.address, runner);
    await createSides(postgres);
  });
  afterAll(async () => {
    await proxy?.stop(0);
    await postgres?.stop();
  });

  async function compare(pipeline: Pipeline, loosely: boolean): Promise<void> {
    const { there, here, expected, got, comparable } = await saidToBoth(postgres, proxy, pipeline, loosely);
    expect(here.stalled).toBe(there.stalled);
    expect(got.slice(0, comparable)).toEqual(expected.slice(0, comparable));
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
      { numRuns: count, seed, interruptAfterTimeLimit: seconds * 1000 },
    );
  }

  it.each(Object.entries(version >= 18 ? { ...found, ...foundInBlocks } : found))('once differed: %s', async (_, steps) => {
    for (const sizes of [[10_000], [7]]) await compare({ steps, sizes }, true);
  });

  it('as drivers send them, brings the same replies', async () => {
    for (const steps of Object.values(driverFlows)) await compare({ steps, sizes: [10_000] }, true);
  });

  const timeout = (seconds + 10) * 1000;
  it('of ordinary SQL brings the same bytes', { timeout }, () => check(0, rounds));
  it('with extended statements brings the same replies', { timeout }, () => check(3, rounds));
});
