/**
 * What a stream that is held between two transactions still has to give.
 * Invariant: an epoch that lets rows of a copy be seen records a position no earlier than the one that the copy waited for. The stream may have
 * come that far without a change for any storage, which records nothing: begun again before it, it would give the transactions that the copy
 * has seen once more, and to a storage that takes them now.
 */
import type { Lsn } from '../replication/lsn.ts';
import type { Epoch } from './epoch.ts';
import type { SourceRunner } from './source-runner.ts';

/** Brings it into storage. Answers the position that the epoch has then, to be recorded by it. */
export async function takeHeld(epoch: Epoch, runner: SourceRunner): Promise<Lsn> {
  let reached = runner.applied;
  for (let batch = runner.take(); batch !== null; batch = runner.take()) {
    await epoch.apply(batch);
    reached = batch.endLsn ?? reached;
  }
  return reached;
}
