/** Entry file of a proxy worker: joins the wire, which knows no SQL of Millrace, to the statements, which know no wire. */
import type { WorkerConfig } from '../config.ts';
import { createStatementRunner } from '../statements/runner.ts';
import { runWorker } from '../wire/worker.ts';
import { runChild, tell } from './child-process.ts';
import { createMainLink } from './main-link.ts';

runChild<WorkerConfig>(async (config) => {
  const runner = createStatementRunner({
    secretKey: config.secretKey,
    upstream: config.upstream,
    onCatalog: (database) => tell({ type: 'catalog-installed', database }),
  });
  const link = createMainLink();
  const worker = runWorker(config, runner, { admin: link });
  link.serve(worker);
  tell({ type: 'ready' });
  const report = (): void => tell({ type: 'metrics', values: worker.metrics() });
  report();
  const timer = setInterval(report, 1_000);
  return {
    async stop() {
      clearInterval(timer);
      await worker.stop();
    },
  };
});
