/** Stream tables that cannot be kept. Invariant: what it says, and why, changes together with its gate. */
import type { RelationError } from '../../catalog/model.ts';
import { quoteLiteral } from '../../sql/quote.ts';
import type { EngineContext } from '../context.ts';
import type { Epoch } from '../epoch.ts';
import { alert } from './bookkeeping.ts';

/** Puts a stream table aside, with the error that says why, within an epoch. */
export async function suspend(
  engine: EngineContext,
  epoch: Pick<Epoch, 'fail' | 'run'>,
  viewId: number,
  error: RelationError,
): Promise<void> {
  const stream = engine.state.streams.get(viewId);
  await epoch.fail(viewId, error);
  await epoch.run([
    `UPDATE millrace.stream_table SET status = 'SUSPENDED', status_reason = ${quoteLiteral(error.message)}, delta_lost = coalesce(delta_lost, 'it was suspended')
      WHERE relation_id = ${viewId}`,
    ...(stream?.triggered === true ? [`UPDATE millrace.immediate SET mode = 'off' WHERE relation_id = ${viewId}`] : []),
  ]);
  if (stream !== undefined) await engine.session.executeAll([alert(stream, 'auto_suspended', { reason: error.message })]);
}
