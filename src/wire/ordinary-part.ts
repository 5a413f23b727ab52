/**
 * One ordinary statement out of a text that also holds extended ones.
 * Invariant: the client sees what a simple Query would have shown of it; what the extended protocol says besides is left out.
 */
import { UpstreamError } from '../statements/caller-session.ts';
import { commandTag, errorFields } from './decode.ts';
import type { Driver } from './driver.ts';
import { bind, describe, execute, flush, parse } from './encode.ts';
import { OrdinaryPartError } from './failure.ts';
import { placeholder } from './local-names.ts';
import { Disposition } from './replies.ts';
import { Reply } from './tags.ts';
import type { Taken } from './taken.ts';

/** Runs it and relays the answer; `tell` gets its CommandComplete. Returns the command tag. Rejects with OrdinaryPartError. */
export async function relayPart(taken: Taken, text: string, tell: (complete: Buffer) => void): Promise<string> {
  const { driver } = taken;
  const { charset } = driver;
  if (driver.failed) throw new UpstreamError({ S: 'ERROR', V: 'ERROR', C: '25P02', M: 'current transaction is aborted' });
  let tag = '';
  let portal = false;
  let failure: Error | null = null;
  driver.dirty = true;
  await driver.exchange(
    Buffer.concat([
      parse('', text, charset),
      bind('', '', [], charset),
      describe('P', '', charset),
      // No Close behind it: were it a COPY FROM STDIN, the server would take that for data.
      execute('', charset),
      flush,
    ]),
    {
      disposition: (which) => {
        switch (which) {
          case Reply.bindComplete:
            portal = true;
            return Disposition.drop;
          case Reply.parseComplete:
          case Reply.noData:
            return Disposition.drop;
          case Reply.commandComplete:
          case Reply.copyIn:
          case Reply.error:
          case Reply.emptyQuery:
            return Disposition.collect;
          default:
            return Disposition.pass;
        }
      },
      message: (which, message) => {
        switch (which) {
          case Reply.commandComplete:
            tag = commandTag(message);
            tell(Buffer.from(message));
            return true;
          case Reply.copyIn:
            driver.toClient(Buffer.from(message));
            taken.relayCopyIn();
            return false;
          case Reply.error:
            failure = new OrdinaryPartError(errorFields(message, charset), portal);
            return true;
          default:
            return true;
        }
      },
    },
  );
  if (failure !== null) {
    driver.failed = true;
    throw failure;
  }
  return tag;
}

/**
 * Begins the transaction that a text of several statements is: what cannot run in a block (VACUUM) is refused there from the first
 * statement on, and what can run in a block only (LOCK, DECLARE) is allowed. In the extended protocol an
 * Execute before them does it, from PostgreSQL 18 on; older ones see single statements of one transaction.
 */
export async function beginImplicitBlock(driver: Driver): Promise<void> {
  const { charset } = driver;
  driver.dirty = true;
  let error: UpstreamError | null = null;
  await driver.exchange(Buffer.concat([parse('', placeholder, charset), bind('', '', [], charset), execute('', charset), flush]), {
    disposition: (tag) => (tag === Reply.commandComplete || tag === Reply.error ? Disposition.collect : Disposition.drop),
    message: (tag, message) => {
      if (tag === Reply.error) error = new UpstreamError(errorFields(message, charset));
      return true;
    },
  });
  if (error === null) return;
  driver.failed = true;
  throw error;
}
