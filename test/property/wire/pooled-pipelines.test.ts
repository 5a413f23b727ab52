/**
 * Random pipelines bring the same replies from a client that takes turns at pooled connections as from Postgres directly, whatever the
 * client before it left there. Two connections for three clients at once, so that each pipeline moves between them.
 * MILLRACE_PIPELINE_ROUNDS for more of them (and MILLRACE_PIPELINE_SECONDS, in which they have to fit), MILLRACE_SEED to see the same again.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { defaultProxySettings } from '../../../src/wire/pool/settings.ts';
import { startProxy, type TestProxy } from '../../integration/wire/proxy.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { type Pipeline, pipelines, runner } from './pipeline-steps.ts';
import { driverFlows, found, foundInBlocks } from './pipelines-found.ts';
import { createSides, saidToBoth } from './side-by-side.ts';

const rounds = Number(process.env['MILLRACE_PIPELINE_ROUNDS'] ?? 120);
const seconds = Number(process.env['MILLRACE_PIPELINE_SECONDS'] ?? 40);
const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000_000);

describe('a pipeline through a transaction pool', () => {
  let postgres: TestPostgres;
  let proxy: TestProxy;
  beforeAll(async () => {
    postgres = await startPostgres({ version: 18 });
    const settings = { ...defaultProxySettings, poolMode: 'transaction', authType: 'trust', defaultPoolSize: 2 } as const;
    proxy = await startProxy(postgres.address, runner, {}, settings);
    await createSides(postgres);
  });
  afterAll(async () => {
    await proxy?.stop(0);
    await postgres?.stop();
  });

  async function compare(pipeline: Pipeline, loosely: boolean): Promise<void> {
    const { there, here, expected, got, comparable } = await saidToBoth(postgres, proxy, pipeline, loosely);
    // A Close or Parse that Millrace answers itself does not reach the server: among COPY data, where it does not belong, it passes unseen,
    // and the server does not hang up.
    const hungUp = there.bytes.includes('protocol synchronization was lost');
    const common = hungUp ? expected.findIndex((line) => line.includes('type during COPY') || line.includes('message type')) : comparable;
    expect(here.stalled).toBe(there.stalled);
    expect(got.slice(0, common)).toEqual(expected.slice(0, common));
  }

  async function check(share: number, count: number): Promise<void> {
    await fc.assert(
      fc.asyncProperty(
        pipelines(share, true).map((one) => ({ ...one, toString: () => one.steps.map((part) => part.label).join('\n') })),
        (one) => compare(one, share > 0),
      ),
      { numRuns: count, seed, interruptAfterTimeLimit: seconds * 1000 },
    );
  }

  it.each(Object.entries({ ...found, ...foundInBlocks, ...driverFlows }))('once differed: %s', async (_, steps) => {
    for (const sizes of [[10_000], [7]]) await compare({ steps, sizes }, true);
  });

  const timeout = (seconds + 10) * 1000;
  it('of ordinary SQL brings the same bytes', { timeout }, () => check(0, rounds));
  it('with extended statements brings the same replies', { timeout }, () => check(3, rounds));
});
