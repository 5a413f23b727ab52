/**
 * Decoded rows on their way into a base table's delta table.
 * Invariant: all of those given go in, or none and the error is answered; the transaction around goes on either way.
 */
import { deltaTable, storageColumn } from '../../catalog/model.ts';
import type { PostgresError } from '../../replication/postgres-error.ts';
import type { RawConnection } from '../../replication/session-contract.ts';
import { requireStatementError } from '../epoch.ts';
import type { BaseRows } from './transactions.ts';

/** Of each base table. */
export async function insertDeltas(
  session: RawConnection,
  partsOf: ReadonlyMap<number, readonly BaseRows[]>,
): Promise<PostgresError | null> {
  session.cork();
  const sent: Promise<unknown>[] = [session.query('SAVEPOINT deltas')];
  for (const [baseId, parts] of partsOf) {
    for (const group of byColumns(parts)) {
      const columns = ['w', 'm', ...(group[0]?.target.attnums ?? []).map(storageColumn)];
      const into = session.copyIn(`COPY ${deltaTable(baseId)} (${columns.join(', ')}) FROM STDIN`);
      for (const { frames } of group) {
        for (const frame of frames) if (!into.writeFrames(Buffer.isBuffer(frame) ? frame : frame.read())) await into.drain();
      }
      sent.push(into.finish());
    }
  }
  sent.push(session.query('RELEASE SAVEPOINT deltas'));
  session.uncork();
  const failure = (await Promise.allSettled(sent)).find((outcome) => outcome.status === 'rejected');
  if (failure === undefined) return null;
  const reason = requireStatementError(failure.reason);
  await session.query('ROLLBACK TO SAVEPOINT deltas; RELEASE SAVEPOINT deltas');
  return reason;
}

/** Runs of parts with the same columns. */
function byColumns(parts: readonly BaseRows[]): BaseRows[][] {
  const groups: BaseRows[][] = [];
  for (const part of parts) {
    const last = groups.at(-1);
    if (last?.[0]?.target === part.target) last.push(part);
    else groups.push([part]);
  }
  return groups;
}
