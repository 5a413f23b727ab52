/** Entry file of the engine of one database. Crash only: an engine that fails exits, and the supervisor starts it anew. */
import type { EngineConfig } from '../config.ts';
import { runEngine } from '../engine/run.ts';
import { runChild, tell } from './child-process.ts';

runChild<EngineConfig>((config) =>
  runEngine(config, {
    ready: () => tell({ type: 'ready' }),
    metrics: (values) => tell({ type: 'metrics', values }),
    failed: () => process.exit(1),
  }),
);
