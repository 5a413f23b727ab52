/** Entry file of the engine of one database. */
import type { EngineConfig } from '../config.ts';
import { type ChildJob, runChild, tell } from './child-process.ts';

interface EngineHooks {
  ready(): void;
  metrics(values: Record<string, number>): void;
}
type RunEngine = (config: EngineConfig, hooks: EngineHooks) => Promise<ChildJob>;

runChild<EngineConfig>(async (config) => {
  const [engine]: string[] = ['../engine/run.js'];
  const { runEngine } = (await import(engine ?? '')) as { runEngine: RunEngine };
  return await runEngine(config, {
    ready: () => tell({ type: 'ready' }),
    metrics: (values) => tell({ type: 'metrics', values }),
  });
});
