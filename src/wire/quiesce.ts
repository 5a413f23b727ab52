/**
 * Waiting until the upstream has answered everything that was forwarded, so that a conversation of our own can begin.
 * Invariant: afterwards the next bytes of the upstream answer ours, whatever the client had pipelined before.
 *
 * When the ledger is not already quiet a marker is sent: an empty statement prepared with parameter types that spell a random number,
 * described and closed. It changes nothing, works in a failed transaction too, and its description cannot be mistaken for an answer
 * to the client.
 */
import { randomBytes } from 'node:crypto';
import type { Driver } from './driver.ts';
import { close, describe, flush, parse, sync } from './encode.ts';
import { Disposition } from './replies.ts';
import { Reply, Status } from './tags.ts';

/** `skipping`: an error in the open batch makes the upstream discard everything up to Sync. `copying`: it reads COPY data. */
export type Rest = 'ready' | 'skipping' | 'copying';

const markerName = '__millrace_marker';

/** `note` hears of the client's CommandCompletes and errors that come while waiting. */
export async function quiesce(driver: Driver, note: (tag: number, message: Buffer) => void): Promise<Rest> {
  const { ledger } = driver;
  if (ledger.copyIn) return 'copying';
  if (ledger.quiet) return 'ready';
  if (ledger.skipping) return 'skipping';
  if (ledger.caughtUp && ledger.outstanding === 0 && !ledger.doubtful) return 'ready';
  const nonce = [randomBytes(4).readInt32BE(), randomBytes(4).readInt32BE()];
  const inBatch = ledger.batchOpen;
  const marker = new Marker(driver, nonce, inBatch, note);
  await driver.exchange(
    Buffer.concat([
      parse(markerName, '', 'latin1', nonce),
      describe('S', markerName, 'latin1'),
      close('S', markerName, 'latin1'),
      inBatch ? flush : sync,
    ]),
    marker,
  );
  // The upstream was skipping to a Sync of the client, and ours has ended that: it is to go on skipping.
  if (marker.refused) await driver.abort();
  return marker.rest;
}

class Marker {
  rest: Rest = 'ready';
  refused = false;
  readonly #driver: Driver;
  readonly #nonce: readonly number[];
  readonly #inBatch: boolean;
  /** A ParseComplete that is ours if the marker's description follows. */
  #parseComplete: Buffer | null = null;
  #found = false;

  readonly #note: (tag: number, message: Buffer) => void;

  constructor(driver: Driver, nonce: readonly number[], inBatch: boolean, note: (tag: number, message: Buffer) => void) {
    this.#driver = driver;
    this.#note = note;
    this.#nonce = nonce;
    this.#inBatch = inBatch;
  }

  disposition(tag: number): number {
    switch (tag) {
      case Reply.parseComplete:
      case Reply.parameterDescription:
      case Reply.noData:
      case Reply.closeComplete:
      case Reply.readyForQuery:
      case Reply.error:
      case Reply.copyIn:
      case Reply.commandComplete:
        return Disposition.collect;
      default:
        this.#letGo();
        return Disposition.pass;
    }
  }

  message(tag: number, message: Buffer): boolean {
    const { ledger } = this.#driver;
    if (this.#found) return this.#tail(tag, message);
    if (tag === Reply.parameterDescription && this.#parseComplete !== null && this.#isOurs(message)) {
      this.#parseComplete = null;
      this.#found = true;
      return false;
    }
    this.#letGo();
    if (tag === Reply.parseComplete) {
      this.#parseComplete = Buffer.from(message);
      return false;
    }
    if (tag === Reply.readyForQuery && !this.#inBatch && ledger.outstanding === 0 && !ledger.doubtful) {
      // The marker was skipped: a COPY, which had read the Sync that the client meant to stand in front, has failed.
      ledger.status = message[5] ?? Status.idle;
      ledger.settle();
      this.rest = 'skipping';
      this.refused = true;
      return true;
    }
    this.#driver.toClient(Buffer.from(message));
    this.#note(tag, message);
    if (tag === Reply.readyForQuery) ledger.ready(message[5] ?? Status.idle);
    else if (tag === Reply.copyIn) ledger.copyStarted();
    else if (tag === Reply.error) {
      ledger.error();
      if (this.#inBatch && ledger.skipping) {
        this.rest = 'skipping';
        return true;
      }
    }
    return false;
  }

  #tail(tag: number, message: Buffer): boolean {
    const { ledger } = this.#driver;
    if (tag === Reply.readyForQuery) ledger.status = message[5] ?? Status.idle;
    if (tag !== (this.#inBatch ? Reply.closeComplete : Reply.readyForQuery)) return false;
    ledger.settle();
    return true;
  }

  #isOurs(message: Buffer): boolean {
    return message.length === 15 && this.#nonce.every((value, index) => message.readInt32BE(7 + 4 * index) === value);
  }

  #letGo(): void {
    if (this.#parseComplete !== null) this.#driver.toClient(this.#parseComplete);
    this.#parseComplete = null;
  }
}
