/**
 * Extended-protocol messages that concern extended statements: Parse of one, and Bind, Describe, Execute and Close of its names.
 * Invariant: answers come in the order of the messages, whoever gives them; an error of ours leaves the upstream skipping to the
 * client's Sync, as an error of its own does. What concerns nobody but the upstream is forwarded as it came.
 */
import { millraceError } from '../errors.ts';
import type { StatementText } from '../sql/ast.ts';
import { type StatementResult, UpstreamError } from '../statements/caller-session.ts';
import { ask, type CommitTask, failedTransaction, refusingCaller, reservedName } from './caller.ts';
import { bindParts, executeParts, parameterTypes, parseParts, target } from './decode.ts';
import type { ReplyHandler } from './driver.ts';
import { commandComplete, message as encode, flush, noData, portalSuspended } from './encode.ts';
import { failureResponse, OrdinaryPartError } from './failure.ts';
import { type LocalPortal, standIn } from './local-names.ts';
import { Disposition } from './replies.ts';
import { describeFields, encodeRows } from './result-rows.ts';
import { PortalStream, writeStream } from './row-stream.ts';
import { checkSyntax, parseWhole } from './syntax-check.ts';
import { Reply, Request, Status } from './tags.ts';
import { callerFor, rest, type Taken } from './taken.ts';

const beside = { name: reservedName, eachSynced: false } as const;
const besideSynced = { name: reservedName, eachSynced: true } as const;

const unnamedClosed = encode(Request.close, [Buffer.from('S\0', 'latin1')]);

/** Handles a Parse for which the gate said "maybe", and any message that names something local. */
export async function takeExtended(taken: Taken, message: Buffer): Promise<void> {
  // In a batch that failed the upstream discards it, and in a COPY the upstream refuses it.
  if ((await rest(taken)) !== 'ready') return taken.forward(message);
  // Portals have ended with the transaction.
  if (!taken.ledger.batchOpen && taken.ledger.status !== Status.inTransaction) taken.names.forgetPortals();
  try {
    switch (message[0]) {
      case Request.parse:
        return await takeParse(taken, message);
      case Request.bind:
        return await takeBind(taken, message);
      case Request.describe:
        return await takeDescribe(taken, message);
      case Request.execute:
        return await takeExecute(taken, message);
      default:
        return await takeClose(taken, message);
    }
  } catch (error) {
    await fail(taken, error);
  }
}

async function takeParse(taken: Taken, message: Buffer): Promise<void> {
  const { driver, names, runner } = taken;
  const { name, text } = parseParts(message, driver.charset);
  const key = name.toString('latin1');
  let part: StatementText | null;
  try {
    part = await extendedPart(taken, text);
  } catch (error) {
    // Parse takes the unnamed statement away before it reads the text, whatever becomes of that.
    if (key === '' && !driver.failed && (await relay(taken, unnamedClosed, Reply.closeComplete, Buffer.alloc(0))))
      names.statements.delete('');
    throw error;
  }
  if (part === null || part.statement === null) {
    // It may take the place of a local one.
    if (!names.statements.has(key)) return taken.forward(message);
    if (await relay(taken, message, Reply.parseComplete)) names.statements.delete(key);
    return;
  }
  const { statement } = part;
  const upstreamText = runner.upstreamText(statement, part.text);
  if (upstreamText !== null) {
    const behindText = message.indexOf(0, message.indexOf(0, 5) + 1);
    const placed = [name, Buffer.from(`\0${upstreamText}`, driver.charset), message.subarray(behindText)];
    const types = await prepareShared(taken, name, encode(Request.parse, placed), upstreamText.includes('$'));
    if (types !== null) names.statements.set(key, { statement, text: part.text, fields: null, upstream: { types } });
    return;
  }
  const placed = encode(Request.parse, [name, Buffer.from(`\0${standIn}\0\0\0`, 'latin1')]);
  if (!(await relay(taken, placed, Reply.parseComplete))) return;
  names.statements.set(key, {
    statement,
    text: part.text,
    fields: await runner.describe(statement, callerFor(taken, asking(taken))),
    upstream: null,
  });
  if (!isFresh(taken) && !taken.ledger.executed) taken.ledger.asked = true;
}

/** Relays the Parse of a statement that the upstream is to hold. Answers its parameter types, null when the upstream refused it. */
async function prepareShared(taken: Taken, name: Buffer, parse: Buffer, hasParameters: boolean): Promise<readonly number[] | null> {
  if (!hasParameters) return (await relay(taken, parse, Reply.parseComplete)) ? [] : null;
  let types: readonly number[] = [];
  const asked = encode(Request.describe, [Buffer.from('S'), name, Buffer.from([0])]);
  const good = await relay(taken, Buffer.concat([parse, asked]), [Reply.rowDescription, Reply.noData], Buffer.alloc(0), (tag, reply) => {
    if (tag === Reply.parameterDescription) types = parameterTypes(reply);
    return tag !== Reply.parameterDescription;
  });
  return good ? types : null;
}

/** The statement of the text when Millrace is to carry it out, null when the upstream is. */
async function extendedPart(taken: Taken, text: string): Promise<StatementText | null> {
  const { ledger, runner } = taken;
  const parts = await parseWhole(taken, text);
  const [part] = parts;
  if (part === undefined || !parts.some((one) => one.statement !== null)) return null;
  if (parts.length > 1) {
    // With Postgres's own statements only, the upstream has its own words for it.
    for (const one of parts) {
      if (await isCertain(taken, one)) {
        await checkSyntax(taken, text, parts);
        throw millraceError('syntax_error', { message: 'cannot insert multiple commands into a prepared statement' });
      }
    }
    return null;
  }
  if (part.statement === null) return null;
  // Once the batch has executed something the transaction may be another.
  if (ledger.status === Status.failed && !ledger.executed) return (await isCertain(taken, part)) ? part : null;
  // As long as a batch has done nothing the question is put in a transaction of its own, so that it leaves no trace in the client's.
  const fresh = isFresh(taken);
  try {
    return (await runner.claims(part.statement, part.text, callerFor(taken, asking(taken)))) ? part : null;
  } catch (error) {
    // Asked in a failed transaction: what the upstream says to the question is what it says to the client's Parse.
    throw error instanceof UpstreamError && error.fields['C'] === '25P02' ? new OrdinaryPartError(error.fields) : error;
  } finally {
    if (!fresh && !ledger.executed) ledger.asked = true;
  }
}

/** The batch has done nothing yet: a question can be put in a transaction of its own. */
const isFresh = ({ ledger }: Taken): boolean => !ledger.bound && !ledger.executed;
const asking = (taken: Taken): typeof beside | typeof besideSynced => (isFresh(taken) ? besideSynced : beside);

/** Whether a statement is extended whatever the session holds. */
async function isCertain(taken: Taken, part: StatementText): Promise<boolean> {
  if (part.statement === null) return false;
  const refusing = refusingCaller({
    ...taken,
    ...beside,
    cursors: taken.names.cursors,
    inTransactionBlock: () => true,
    onCommit: () => undefined,
  });
  return await taken.runner.claims(part.statement, part.text, refusing).catch(() => false);
}

async function takeBind(taken: Taken, message: Buffer): Promise<void> {
  const { names } = taken;
  const { portal, statement, parameters, formats } = bindParts(message);
  const local = names.statements.get(statement);
  if (local !== undefined && local.upstream !== null) {
    names.portals.set(portal, { statement: local, formats, parameters, rest: null, stream: null, done: false, tag: '' });
    return taken.forward(message);
  }
  // The upstream speaks first: it knows whether the names are right.
  if (!(await relay(taken, message, Reply.bindComplete, Buffer.alloc(0)))) return;
  taken.ledger.bound = true;
  const columns = local?.fields?.length ?? formats.length;
  if (local?.upstream === null && formats.length > 1 && formats.length !== columns) {
    const message = `bind message has ${formats.length} result formats but query has ${columns} columns`;
    throw millraceError('protocol_violation', { message });
  }
  taken.driver.toClient(encode(Reply.bindComplete, []));
  names.forgetPortal(portal);
  if (local !== undefined)
    names.portals.set(portal, { statement: local, formats, parameters, rest: null, stream: null, done: false, tag: '' });
}

/** The upstream describes its placeholder: no parameters, no data. The latter is replaced by what the statement returns. */
async function takeDescribe(taken: Taken, message: Buffer): Promise<void> {
  const { driver, ledger, names } = taken;
  const { kind, name } = target(message);
  const portal = kind === 'P' ? names.portals.get(name) : undefined;
  const local = kind === 'P' ? portal?.statement : names.statements.get(name);
  if (local !== undefined && local.upstream !== null) return taken.forward(message);
  const fields = local?.fields ?? null;
  // Postgres looks nothing up in a failed transaction. Once the batch has executed something the transaction may be another.
  if (fields !== null && ledger.status === Status.failed && !ledger.executed) throw failedTransaction();
  const described = fields === null ? noData : describeFields(fields, portal?.formats ?? [], driver.charset);
  await relay(taken, message, Reply.noData, described);
}

async function takeClose(taken: Taken, message: Buffer): Promise<void> {
  const { kind, name } = target(message);
  if (!(await relay(taken, message, Reply.closeComplete))) return;
  if (kind === 'S') taken.names.statements.delete(name);
  else taken.names.forgetPortal(name);
}

async function takeExecute(taken: Taken, message: Buffer): Promise<void> {
  const { ledger, names, runner, watch } = taken;
  const { portal: name, limit } = executeParts(message);
  const portal = names.portals.get(name);
  if (portal === undefined) return taken.forward(message);
  if (portal.statement.upstream !== null) return await takeShared(taken, portal, portal.statement.upstream.types, message);
  // The upstream knows whether its placeholder is still there: a COMMIT in the same batch ends it.
  const there = encode(Request.describe, [Buffer.from(`P${name}\0`, 'latin1')]);
  if (!(await relay(taken, there, Reply.noData, Buffer.alloc(0)))) return;
  ledger.executed = true;
  const { statement, text } = portal.statement;
  if (portal.done && portal.statement.fields === null) {
    throw new UpstreamError({ S: 'ERROR', V: 'ERROR', C: '55000', M: `portal "${name}" cannot be run` });
  }
  if (portal.stream !== null) return await portal.stream.deliver(taken.driver, limit);
  if (portal.rest !== null || portal.done) return deliver(taken, portal, limit);
  taken.counters.extendedStatements++;
  const tasks: CommitTask[] = [];
  const result = await runner.run(statement, text, callerFor(taken, beside, tasks));
  watch.add(tasks, ledger.status === Status.idle);
  await finish(taken, portal, result, limit);
}

/** Execute of a statement that the upstream answers: Millrace does its part when the portal is first run. */
async function takeShared(taken: Taken, portal: LocalPortal, types: readonly number[], message: Buffer): Promise<void> {
  const { driver, ledger, runner, watch } = taken;
  const { statement, text } = portal.statement;
  const endings = [Reply.commandComplete, Reply.portalSuspended, Reply.emptyQuery];
  ledger.executed = true;
  if (portal.done) {
    await relay(taken, message, endings);
    return;
  }
  taken.counters.extendedStatements++;
  const tasks: CommitTask[] = [];
  const result = await runner.run(statement, text, callerFor(taken, { ...beside, bound: { types, values: portal.parameters } }, tasks));
  portal.done = true;
  if (result.kind !== 'forward') throw new RangeError('a statement that the upstream answers was carried out here');
  const handler = relaying(taken, endings);
  ledger.extended();
  await ask(driver, beside, result.behind, {
    bytes: message,
    handler,
    get failed() {
      return !handler.good;
    },
  });
  ledger.caughtUp = handler.good && !ledger.copyIn;
  if (handler.good) watch.add(tasks, ledger.status === Status.idle);
}

async function finish(taken: Taken, portal: LocalPortal, result: StatementResult, limit: number): Promise<void> {
  const { charset } = taken.driver;
  if (result.kind === 'forward') throw new RangeError('a statement that is carried out here was to be answered by the upstream');
  if (result.kind === 'stream') {
    if (result.copy === null) {
      portal.stream = new PortalStream(result, portal.formats);
      return await portal.stream.deliver(taken.driver, limit);
    }
    portal.done = true;
    const rows = await writeStream(taken.driver, result, [], true);
    taken.driver.toClient(commandComplete(result.tag(rows), charset));
    return;
  }
  portal.rest = result.kind === 'rows' ? encodeRows(result, portal.formats, charset) : [];
  portal.tag = result.tag;
  deliver(taken, portal, limit);
}

/** Rows up to the limit, then CommandComplete or, when some are left, PortalSuspended. */
function deliver(taken: Taken, portal: LocalPortal, limit: number): void {
  const { driver } = taken;
  const rows = portal.rest ?? [];
  const some = limit > 0 ? rows.slice(0, limit) : rows;
  const left = rows.slice(some.length);
  // As in Postgres: with exactly as many rows as asked for, the portal has not yet noticed its end.
  const suspended = limit > 0 && some.length === limit && (left.length > 0 || !portal.done);
  portal.rest = left;
  portal.done = !suspended;
  const end = suspended ? portalSuspended : commandComplete(portal.tag, driver.charset);
  driver.toClient(Buffer.concat([...some, end]));
}

/**
 * Forwards one message and waits for its answer, which goes to the client, `instead` in its place. What comes before it goes to the client
 * as well, unless `shows` says no.
 * False when the upstream answered with an error, which went to the client.
 */
async function relay(
  taken: Taken,
  message: Buffer,
  answer: number | readonly number[],
  instead?: Buffer,
  shows?: (tag: number, reply: Buffer) => boolean,
): Promise<boolean> {
  const { driver, ledger } = taken;
  const handler = relaying(taken, typeof answer === 'number' ? [answer] : answer, instead, shows);
  ledger.extended();
  await driver.exchange(Buffer.concat([message, flush]), handler);
  ledger.caughtUp = handler.good && !ledger.copyIn;
  return handler.good;
}

interface Relaying extends ReplyHandler {
  /** The last message was none of an error. */
  readonly good: boolean;
}

function relaying(taken: Taken, answers: readonly number[], instead?: Buffer, shows?: (tag: number, reply: Buffer) => boolean): Relaying {
  const { driver, ledger } = taken;
  let good = true;
  return {
    get good() {
      return good;
    },
    disposition: (tag) => (shows !== undefined || answers.includes(tag) || tag === Reply.error ? Disposition.collect : Disposition.pass),
    message: (tag, reply) => {
      good = tag !== Reply.error;
      if (good && !answers.includes(tag)) {
        if (shows?.(tag, reply) === true) driver.toClient(Buffer.from(reply));
        return false;
      }
      driver.toClient(good && instead !== undefined ? instead : Buffer.from(reply));
      if (!good) {
        ledger.skipping = true;
        taken.watch.noteError();
      }
      return true;
    },
  };
}

async function fail(taken: Taken, error: unknown): Promise<void> {
  const { driver, ledger, watch } = taken;
  taken.counters.errors++;
  watch.noteError();
  driver.toClient(failureResponse(error, 0, driver.charset, taken.log));
  await driver.abort();
  ledger.batchOpen = true;
  ledger.skipping = true;
}
