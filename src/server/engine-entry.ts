/** Entry file of the engine of one database. */
import type { EngineConfig } from '../config.ts';
import { runEngine } from '../engine/run.ts';
import { die, runChild, tell } from './child-process.ts';
import { createHoldLink } from './hold-link.ts';

runChild<EngineConfig>((config) =>
  runEngine(config, {
    ready: () => tell({ type: 'ready' }),
    metrics: (values) => tell({ type: 'metrics', values }),
    failed: die,
    hold: createHoldLink(),
  }),
);
