/**
 * A simple Query that holds, or may hold, extended statements.
 * Invariant: it is one transaction as in Postgres (unless it says otherwise itself), an error stops it, the CommandComplete of its last
 * statement follows the commit, and it ends in one ReadyForQuery. A text without a statement of ours is forwarded as it came.
 */
import type { StatementText } from '../sql/ast.ts';
import { UpstreamError } from '../statements/caller-session.ts';
import { ask, type CommitTask, failedTransaction, refusingCaller, reservedName } from './caller.ts';
import { queryText } from './decode.ts';
import { type Charset, close, commandComplete, query, readyForQuery } from './encode.ts';
import { charactersBefore, failureResponse, OrdinaryPartError } from './failure.ts';
import { placeholder } from './local-names.ts';
import { beginImplicitBlock, relayPart } from './ordinary-part.ts';
import { simpleResult } from './result-rows.ts';
import { writeStream } from './row-stream.ts';
import { checkSyntax, parseWhole } from './syntax-check.ts';
import { Status } from './tags.ts';
import { callerFor, restBeforeQuery, type Taken } from './taken.ts';
import { asWarning, carryOut } from './tasks.ts';

const simple = { name: '', eachSynced: false } as const;
const simpleSynced = { name: '', eachSynced: true } as const;
/** For questions: the client's unnamed portal is left alone. */
const beside = { name: reservedName, eachSynced: false } as const;
const besideSynced = { name: reservedName, eachSynced: true } as const;

/** Handles a Query for which the gate said "maybe", or that stands behind an unfinished batch. */
export async function takeQuery(taken: Taken, message: Buffer): Promise<void> {
  const { driver, ledger } = taken;
  if ((await restBeforeQuery(taken)) !== 'ready') return taken.forward(message);
  if (taken.names.cursors.size === 0 && !taken.mayBeExtended(message, 5, message.length - 1)) return taken.forward(message);
  // The failed transaction may have been left since; only ReadyForQuery tells.
  if (ledger.status === Status.failed && ledger.executed) await driver.endQuery([]);
  const text = queryText(message, driver.charset);
  let parts: readonly StatementText[];
  try {
    parts = await parseWhole(taken, text);
    if (!(await anyClaimed(taken, parts))) return taken.forward(message);
    if (parts.length > 1) await checkSyntax(taken, text, parts);
  } catch (error) {
    taken.names.forgetUnnamed();
    return await fail(taken, error, 0, 0);
  }
  // Any statement will do: in a failed transaction the upstream gives its own answer to it.
  if (ledger.status === Status.failed && parts.length === 1) return taken.forward(query(placeholder, driver.charset));
  taken.names.forgetUnnamed();
  await runParts(taken, text, parts);
}

/**
 * Whether any statement is ours, or may turn out to be once those in front of it have run (SET search_path, CREATE VIEW).
 * Asked without leaving a trace in the session's transaction.
 */
async function anyClaimed(taken: Taken, parts: readonly StatementText[]): Promise<boolean> {
  // In a batch that has carried something out there is a transaction already, which a Sync would end.
  const how = taken.ledger.executed ? beside : besideSynced;
  for (const [index, part] of parts.entries()) {
    if (part.statement !== null && (await isClaimed(taken, part, how, index > 0))) return true;
  }
  return false;
}

async function isClaimed(taken: Taken, part: StatementText, how: typeof beside | typeof besideSynced, ahead = false): Promise<boolean> {
  const { ledger, runner } = taken;
  if (part.statement === null) return false;
  if (ledger.status === Status.failed) {
    const refusing = refusingCaller({
      ...taken,
      ...simple,
      cursors: taken.names.cursors,
      inTransactionBlock: () => true,
      onCommit: () => undefined,
    });
    return await runner.claims(part.statement, part.text, refusing, ahead).catch(() => false);
  }
  return await runner.claims(part.statement, part.text, callerFor(taken, how), ahead);
}

/** One text under way. */
interface Run {
  /** What the client hears of the last statement once the commit has succeeded. */
  complete: Buffer | null;
  /** Tasks of the transaction under way. */
  tasks: CommitTask[];
}

async function runParts(taken: Taken, text: string, parts: readonly StatementText[]): Promise<void> {
  const { driver, ledger, watch } = taken;
  const run: Run = { complete: null, tasks: [] };
  const pipelined = ledger.executed && parts.length === 1;
  const implicit = ledger.status === Status.idle;
  for (const [index, part] of parts.entries()) {
    const ownTasks: CommitTask[] = [];
    try {
      if (parts.length > 1 && ledger.status === Status.idle && !driver.dirty) await beginImplicitBlock(driver);
      await runPart(taken, part, run, ownTasks, { last: index === parts.length - 1, alone: parts.length === 1 && implicit && !pipelined });
      run.tasks.push(...ownTasks);
    } catch (error) {
      // In an explicit block a savepoint may still save the statements before this one.
      if (ledger.status !== Status.idle) watch.add(run.tasks, false);
      return await fail(taken, error, charactersBefore(text, part.at), index);
    }
  }
  try {
    // Behind an Execute a single statement is part of a transaction up to Sync, where the server knows such.
    if (pipelined) await driver.endQuery(nothingUnnamed(driver.charset));
    else await driver.sync(nothingUnnamed(driver.charset));
  } catch (error) {
    return await fail(taken, error, 0, parts.length);
  }
  if (ledger.status === Status.idle) {
    const earlier = watch.tasks;
    watch.tasks = [];
    const failures = await carryOut(taken, [...earlier, ...run.tasks]);
    const [first, ...others] = failures;
    for (const other of others) driver.toClient(asWarning(other));
    if (first !== undefined) run.complete = first;
  } else watch.add(run.tasks, pipelined && implicit);
  if (run.complete !== null) driver.toClient(run.complete);
  driver.toClient(readyForQuery(ledger.status));
}

async function runPart(
  taken: Taken,
  part: StatementText,
  run: Run,
  tasks: CommitTask[],
  { last, alone }: { readonly last: boolean; readonly alone: boolean },
): Promise<void> {
  const { driver, ledger } = taken;
  const tell = (complete: Buffer): void => {
    if (last) run.complete = complete;
    else driver.toClient(complete);
  };
  if (part.statement !== null && (await isClaimed(taken, part, beside))) {
    if (ledger.status === Status.failed) throw failedTransaction();
    taken.counters.extendedStatements++;
    // What goes on without end is no transaction: nothing would be cleaned up behind it.
    const endless = alone && (part.statement.type === 'subscribe' || part.statement.type === 'copy_subscribe');
    const result = await taken.runner.run(part.statement, part.text, callerFor(taken, endless ? simpleSynced : simple, tasks));
    if (result.kind === 'forward') {
      await relayPart(taken, result.text, tell);
      await ask(taken.driver, simple, result.behind);
      return;
    }
    if (result.kind === 'stream') return tell(commandComplete(result.tag(await writeStream(driver, result, [], false)), driver.charset));
    const { rows, complete } = simpleResult(result, driver.charset);
    if (rows !== null) driver.toClient(rows);
    tell(complete);
    return;
  }
  const tag = await relayPart(taken, part.text, tell);
  if (!/^(BEGIN|START TRANSACTION|COMMIT|ROLLBACK|PREPARE TRANSACTION)$/.test(tag)) return;
  // Where no implicit transaction is under way Sync ends nothing, and tells where we are.
  const before = ledger.status;
  await driver.sync().catch((error: unknown) => {
    throw error instanceof UpstreamError ? new OrdinaryPartError(error.fields) : error;
  });
  await transactionEnded(taken, run, tag, before);
}

/** What a COMMIT or ROLLBACK inside the text means for the tasks. */
async function transactionEnded(taken: Taken, run: Run, tag: string, before: number): Promise<void> {
  const { driver, ledger, watch } = taken;
  const stillOpen = ledger.status !== Status.idle && tag === 'ROLLBACK' && before !== Status.idle;
  if (tag === 'BEGIN' || tag === 'START TRANSACTION' || stillOpen) return;
  const tasks = [...watch.tasks, ...run.tasks];
  watch.tasks = [];
  run.tasks = [];
  if (tag !== 'COMMIT' || ledger.status !== Status.idle) return;
  for (const failure of await carryOut(taken, tasks)) driver.toClient(asWarning(failure));
}

/** A simple Query leaves nothing unnamed behind. */
function nothingUnnamed(charset: Charset): Buffer[] {
  return [close('P', '', charset), close('S', '', charset)];
}

/** Tells the client, and makes the upstream's transaction fail as an error of its own would have. `done`: statements in front of it. */
async function fail(taken: Taken, error: unknown, offset: number, done: number): Promise<void> {
  const { driver, ledger, watch } = taken;
  taken.counters.errors++;
  taken.endCopyIn();
  driver.toClient(failureResponse(error, offset, driver.charset, taken.log));
  const inBlock = ledger.status !== Status.idle;
  if (ledger.status === Status.inTransaction || driver.dirty) await driver.abort();
  await driver.sync();
  // In a block Postgres leaves the failed portal to the end of the transaction. A statement that did not get so far has left none of
  // the statements in front of it, and with none of those what was there before.
  const portalStays = inBlock && (done === 0 || !(error instanceof OrdinaryPartError) || error.inPortal);
  await driver.sync(portalStays ? [close('S', '', driver.charset)] : nothingUnnamed(driver.charset));
  if (ledger.status === Status.idle) watch.tasks = [];
  driver.toClient(readyForQuery(ledger.status));
}
