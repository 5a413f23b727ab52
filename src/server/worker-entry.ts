/** Entry file of a proxy worker. */
import type { WorkerConfig } from '../config.ts';
import type { StatementRunner } from '../statements/caller-session.ts';
import { type ChildJob, runChild } from './child-process.ts';

type RunWorker = (config: WorkerConfig, runner: StatementRunner) => Promise<ChildJob>;
type CreateStatementRunner = (config: WorkerConfig) => StatementRunner;

runChild<WorkerConfig>(async (config) => {
  const [worker, runner]: string[] = ['../wire/worker.js', '../statements/runner.js'];
  const { runWorker } = (await import(worker ?? '')) as { runWorker: RunWorker };
  const { createStatementRunner } = (await import(runner ?? '')) as { createStatementRunner: CreateStatementRunner };
  return await runWorker(config, createStatementRunner(config));
});
