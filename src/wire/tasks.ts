/** Runs the tasks of a transaction that has ended. Invariant: the ReadyForQuery goes out last, and the list is empty afterwards. */
import { type CommitTask, reservedName } from './caller.ts';
import type { Outcome } from './commit-tasks.ts';
import { errorFields } from './decode.ts';
import { ConnectionLost } from './driver.ts';
import { fieldsMessage } from './encode.ts';
import { failureResponse } from './failure.ts';
import { Reply } from './tags.ts';
import { callerFor, type Taken } from './taken.ts';

/** After a ReadyForQuery in splice mode. */
export async function runTasks(taken: Taken, outcome: Outcome, readyForQuery: Buffer): Promise<void> {
  const { driver, watch } = taken;
  const tasks = watch.tasks;
  watch.tasks = [];
  if (outcome !== 'rolled back') {
    const failures = await carryOut(taken, tasks);
    for (const [index, failure] of failures.entries()) {
      driver.toClient(outcome === 'implicit' && index === 0 ? failure : asWarning(failure));
    }
  }
  driver.toClient(readyForQuery);
}

/** The ErrorResponses of the tasks that failed, in order. */
export async function carryOut(taken: Taken, tasks: readonly CommitTask[]): Promise<Buffer[]> {
  const failures: Buffer[] = [];
  // A transaction of its own for each query: a task may wait for long and must see what others commit meanwhile.
  const session = callerFor(taken, { name: reservedName, eachSynced: true });
  for (const task of tasks) {
    try {
      await task(session);
    } catch (error) {
      if (error instanceof ConnectionLost) throw error;
      taken.counters.errors++;
      failures.push(failureResponse(error, 0, taken.driver.charset, taken.log));
    }
  }
  return failures;
}

/** The same words as a warning: what they are about has been committed. */
export function asWarning(error: Buffer): Buffer {
  return fieldsMessage(Reply.notice, { ...errorFields(error, 'latin1'), S: 'WARNING', V: 'WARNING' }, 'latin1');
}
