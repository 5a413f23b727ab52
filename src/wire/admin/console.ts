/**
 * A client's connection to the admin console, once it is let in: the server's side of the protocol.
 * Invariant: messages are answered one after the other and in full; after an error in the extended protocol everything up to Sync is
 * skipped; what is buffered is bounded.
 */
import type { Socket } from 'node:net';
import { MillraceError, millraceError } from '../../errors.ts';
import type { Logger } from '../../log.ts';
import { bindParts, executeParts, parseParts, queryText, target } from '../decode.ts';
import {
  commandComplete,
  dataRow,
  errorResponse,
  message,
  noData,
  noticeResponse,
  parseComplete,
  portalSuspended,
  readyForQuery,
  rowDescription,
} from '../encode.ts';
import { Reply, Request, Status } from '../tags.ts';
import { type ConsoleCommand, parseCommands } from './commands.ts';
import { type ConsoleResult, columnsOf, type RunnerContext, runCommand } from './runner.ts';
import { describeColumns, encodeValue } from './values.ts';

const longestMessage = 1_048_576;
/** While a command runs the client is read this far ahead. */
const readAhead = 262_144;

const bindComplete = message(Reply.bindComplete, []);
const closeComplete = message(Reply.closeComplete, []);
const emptyQuery = message(Reply.emptyQuery, []);
const noParameters = message(Reply.parameterDescription, [Buffer.from([0, 0])]);

interface Portal {
  readonly command: ConsoleCommand | null;
  readonly formats: readonly number[];
  result: ConsoleResult | null;
  sent: number;
}

export class AdminConsole {
  /** When it last sent something. */
  requestTime = Date.now();
  busy = false;
  readonly #socket: Socket;
  readonly #context: RunnerContext;
  readonly #log: Logger;
  readonly #statements = new Map<string, ConsoleCommand | null>();
  readonly #portals = new Map<string, Portal>();
  #buffered: Buffer = Buffer.alloc(0);
  #out: Buffer[] = [];
  #status: number = Status.idle;
  #skipping = false;
  #running = new AbortController();
  #over = false;

  constructor(socket: Socket, context: RunnerContext, log: Logger) {
    this.#socket = socket;
    this.#context = context;
    this.#log = log;
  }

  /** Serves from here on; the client has been told ReadyForQuery. `rest`: what it has sent already. */
  start(rest: Buffer): void {
    const socket = this.#socket;
    const left = (): void => {
      this.#over = true;
      this.#running.abort();
      socket.destroySoon();
    };
    socket.on('data', (chunk: Buffer) => this.#received(chunk));
    socket.on('end', left).on('close', left);
    if (rest.length > 0) this.#received(rest);
    socket.resume();
  }

  /** Ends the command that runs, if one does. */
  cancel(): void {
    this.#running.abort();
  }

  /** Ends the connection, with the words Postgres has for it. */
  shutDown(): void {
    if (this.#over) return;
    this.#over = true;
    this.#running.abort();
    const socket = this.#socket;
    socket.end(errorResponse(millraceError('administrator_shutdown').fields, 'utf8', 'FATAL'));
    const timer = setTimeout(() => socket.destroy(), 1_000);
    socket.once('close', () => clearTimeout(timer));
  }

  #received(chunk: Buffer): void {
    this.requestTime = Date.now();
    this.#buffered = this.#buffered.length === 0 ? chunk : Buffer.concat([this.#buffered, chunk]);
    if (this.busy) {
      if (this.#buffered.length > readAhead) this.#socket.pause();
      return;
    }
    void this.#work();
  }

  async #work(): Promise<void> {
    this.busy = true;
    try {
      for (let next = this.#next(); next !== null && !this.#over; next = this.#next()) {
        await this.#answer(next);
        // Its turn is over when the client takes what it was told.
        if (this.#out.length > 0 && !this.#flush()) await new Promise<void>((resolve) => this.#whenDrained(resolve));
      }
      this.#flush();
    } catch (error) {
      this.#fatal(error);
    }
    this.busy = false;
    if (!this.#over) this.#socket.resume();
  }

  #whenDrained(resolve: () => void): void {
    this.#socket.once('drain', resolve);
    this.#socket.once('close', resolve);
  }

  #flush(): boolean {
    if (this.#out.length === 0 || this.#socket.writableEnded) return true;
    const bytes = Buffer.concat(this.#out);
    this.#out = [];
    return this.#socket.write(bytes);
  }

  #fatal(error: unknown): void {
    const known = error instanceof MillraceError;
    if (!known) this.#log.error({ err: error }, 'the admin console failed');
    const fields = known ? error.fields : millraceError('internal_error', { message: 'the admin console failed, see the log' }).fields;
    this.#over = true;
    if (!this.#socket.writableEnded) this.#socket.end(Buffer.concat([...this.#out, errorResponse(fields, 'utf8', 'FATAL')]));
  }

  /** The next complete message, null when there is none. */
  #next(): Buffer | null {
    const bytes = this.#buffered;
    if (bytes.length < 5) return null;
    const length = 1 + bytes.readInt32BE(1);
    if (length < 5 || length > longestMessage) throw millraceError('protocol_violation', { message: 'invalid message length' });
    if (bytes.length < length) return null;
    this.#buffered = bytes.subarray(length);
    return bytes.subarray(0, length);
  }

  async #answer(request: Buffer): Promise<void> {
    const tag = request[0];
    if (tag === Request.terminate) {
      this.#over = true;
      this.#socket.end();
      return;
    }
    if (this.#skipping && tag !== Request.sync) return;
    this.#running = new AbortController();
    try {
      await this.#carryOut(tag, request);
    } catch (error) {
      this.#say(errorResponse(this.#fieldsOf(error), 'utf8'));
      if (tag === Request.query || tag === Request.functionCall) this.#ready();
      else this.#skipping = true;
    }
  }

  #fieldsOf(error: unknown): MillraceError['fields'] {
    if (error instanceof MillraceError) return error.fields;
    if (error instanceof RangeError) return millraceError('protocol_violation', { message: 'invalid message format' }).fields;
    this.#log.error({ err: error }, 'a console command failed unexpectedly');
    return millraceError('internal_error', { message: error instanceof Error ? error.message : String(error) }).fields;
  }

  async #carryOut(tag: number | undefined, request: Buffer): Promise<void> {
    switch (tag) {
      case Request.query:
        return await this.#query(queryText(request, 'utf8'));
      case Request.parse: {
        const { name, text } = parseParts(request, 'utf8');
        const [command, more] = parseCommands(text);
        if (more !== undefined)
          throw millraceError('syntax_error', { message: 'cannot insert multiple commands into a prepared statement' });
        this.#statements.set(name.toString('latin1'), command ?? null);
        return this.#say(parseComplete);
      }
      case Request.bind: {
        const { portal, statement, formats } = bindParts(request);
        this.#portals.set(portal, { command: this.#statement(statement), formats, result: null, sent: 0 });
        return this.#say(bindComplete);
      }
      case Request.describe:
        return this.#describe(target(request));
      case Request.execute:
        return await this.#execute(executeParts(request));
      case Request.close: {
        const { kind, name } = target(request);
        (kind === 'S' ? this.#statements : this.#portals).delete(name);
        return this.#say(closeComplete);
      }
      case Request.sync:
        this.#skipping = false;
        if (this.#status === Status.idle) this.#portals.clear();
        return this.#ready();
      case Request.flush:
        this.#flush();
        return;
      case Request.copyData:
      case Request.copyDone:
      case Request.copyFail:
        return;
      case Request.functionCall:
        throw millraceError('feature_not_supported', { message: 'the admin console has no functions' });
      default:
        this.#fatal(millraceError('protocol_violation', { message: `invalid frontend message type ${tag}` }));
    }
  }

  async #query(text: string): Promise<void> {
    const commands = parseCommands(text);
    if (commands.length === 0) this.#say(emptyQuery);
    for (const command of commands) {
      const result = await this.#run(command);
      if (result.columns !== null)
        this.#say(
          rowDescription(
            describeColumns(result.columns, () => 0),
            'utf8',
          ),
        );
      this.#rows(result, [], 0, result.rows.length);
      this.#say(commandComplete(result.tag, 'utf8'));
    }
    this.#ready();
  }

  async #run(command: ConsoleCommand): Promise<ConsoleResult> {
    const result = await runCommand(command, this.#context, this.#running.signal);
    for (const notice of result.notices) this.#say(noticeResponse(notice, 'utf8'));
    if (command.type === 'nothing') {
      if (/^(BEGIN|START)/.test(command.tag)) this.#status = Status.inTransaction;
      else if (/^(COMMIT|ROLLBACK)/.test(command.tag)) this.#status = Status.idle;
    }
    return result;
  }

  #describe({ kind, name }: { readonly kind: 'S' | 'P'; readonly name: string }): void {
    const portal = kind === 'P' ? this.#portal(name) : null;
    const command = portal === null ? this.#statement(name) : portal.command;
    if (portal === null) this.#say(noParameters);
    const columns = command === null ? null : columnsOf(command);
    if (columns === null) this.#say(noData);
    else
      this.#say(
        rowDescription(
          describeColumns(columns, (index) => formatOf(portal?.formats ?? [], index)),
          'utf8',
        ),
      );
  }

  async #execute({ portal: name, limit }: { readonly portal: string; readonly limit: number }): Promise<void> {
    const portal = this.#portal(name);
    if (portal.command === null) return this.#say(emptyQuery);
    portal.result ??= await this.#run(portal.command);
    const { result } = portal;
    const to = limit > 0 ? Math.min(result.rows.length, portal.sent + limit) : result.rows.length;
    this.#rows(result, portal.formats, portal.sent, to);
    portal.sent = to;
    // As Postgres: with a limit that was reached it is not known whether more would come.
    const suspended = limit > 0 && result.columns !== null && to < result.rows.length;
    this.#say(suspended ? portalSuspended : commandComplete(result.tag, 'utf8'));
  }

  #rows({ columns, rows }: ConsoleResult, formats: readonly number[], from: number, to: number): void {
    if (columns === null) return;
    for (const row of rows.slice(from, to)) {
      this.#say(dataRow(columns.map(({ type }, index) => encodeValue(row[index] ?? null, type, formatOf(formats, index)))));
    }
  }

  #statement(name: string): ConsoleCommand | null {
    const command = this.#statements.get(name);
    if (command === undefined) throw millraceError('prepared_statement_unknown', { name });
    return command;
  }

  #portal(name: string): Portal {
    const portal = this.#portals.get(name);
    if (portal === undefined) throw millraceError('portal_unknown', { name });
    return portal;
  }

  #ready(): void {
    this.#say(readyForQuery(this.#status));
  }

  #say(bytes: Buffer): void {
    this.#out.push(bytes);
  }
}

/** As in Bind: none (all text), one for all columns, or one a column. */
function formatOf(formats: readonly number[], index: number): number {
  return (formats.length === 1 ? formats[0] : formats[index]) ?? 0;
}
