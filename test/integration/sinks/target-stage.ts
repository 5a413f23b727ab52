/** A stage, and another server that sinks write to: the connection `warehouse` leads there. */
import { startPostgres, type TestPostgres, type TestPostgresOptions } from '../../support/postgres.ts';
import { leadsTo, type Stage, simpleSource, startStage, type TestClient } from '../statements/stage.ts';

export interface TargetStage {
  readonly stage: Stage;
  /** Of Millrace. */
  readonly client: TestClient;
  /** At the origin of source `s`. */
  readonly origin: TestClient;
  readonly server: TestPostgres;
  /** At that server. */
  readonly target: TestClient;
}

export async function startTargetStage(options?: TestPostgresOptions): Promise<TargetStage> {
  const [stage, server] = await Promise.all([startStage(), startPostgres(options)]);
  const client = await stage.connect();
  const origin = await simpleSource(stage, client);
  const target = await stage.direct(server);
  await client.query(`CREATE CONNECTION warehouse TO POSTGRES (${leadsTo(server)})`);
  return { stage, client, origin, server, target };
}
