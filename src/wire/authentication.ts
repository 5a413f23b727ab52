/**
 * The time between the startup packet and the first ReadyForQuery: authentication is the upstream's, relayed.
 * Invariant: until the upstream says AuthenticationOk the client can send nothing but answers to its questions, each up to 64 KB.
 */

import { message as encode } from './encode.ts';
import type { Ledger } from './ledger.ts';
import { Disposition, type ReplySink, type ReplyTarget } from './replies.ts';
import { longestAuthenticationMessage } from './startup.ts';
import { Reply, Request } from './tags.ts';

const authenticationOk = 0;
const authenticationSasl = 10;
const channelBinding = 'SCRAM-SHA-256-PLUS';

/** Reads the replies of this time. The hooks are called once each. */
export class AuthenticationSink implements ReplySink {
  readonly #target: ReplyTarget;
  readonly #ledger: Ledger;
  readonly #hooks: { authenticated(): void; backendKey(key: Buffer): void; ready(): void };

  constructor(target: ReplyTarget, ledger: Ledger, hooks: { authenticated(): void; backendKey(key: Buffer): void; ready(): void }) {
    this.#target = target;
    this.#ledger = ledger;
    this.#hooks = hooks;
  }

  disposition(tag: number): number {
    return tag === Reply.authentication || tag === Reply.parameterStatus || tag === Reply.backendKeyData || tag === Reply.readyForQuery
      ? Disposition.collect
      : Disposition.pass;
  }

  message(tag: number, message: Buffer): void {
    if (tag === Reply.authentication) {
      const question = message.length >= 9 ? message.readInt32BE(5) : -1;
      this.#target.forward(question === authenticationSasl ? withoutChannelBinding(message) : message);
      if (question === authenticationOk) this.#hooks.authenticated();
      return;
    }
    this.#target.forward(message);
    if (tag === Reply.parameterStatus) this.#target.parameterStatus(message);
    else if (tag === Reply.backendKeyData) this.#hooks.backendKey(Buffer.from(message.subarray(5)));
    else {
      this.#ledger.ready(message[5] ?? 0);
      this.#hooks.ready();
    }
  }
}

/**
 * AuthenticationSASL without the mechanism that binds to the TLS channel: the client's channel ends here, the server's does too, and
 * libpq refuses the offer on a connection without TLS.
 */
export function withoutChannelBinding(message: Buffer): Buffer {
  const mechanisms = message
    .toString('latin1', 9)
    .split('\0')
    .filter((name) => name !== '');
  if (!mechanisms.includes(channelBinding)) return message;
  const kept = mechanisms.filter((name) => name !== channelBinding).map((name) => `${name}\0`);
  return encode(Reply.authentication, [message.subarray(5, 9), Buffer.from(`${kept.join('')}\0`, 'latin1')]);
}

/** Watches what a client sends before AuthenticationOk. */
export class AuthenticationGuard {
  #header = Buffer.alloc(0);
  #remaining = 0;

  /** Whether these next bytes are still within what is allowed. */
  allows(chunk: Buffer): boolean {
    let at = Math.min(this.#remaining, chunk.length);
    this.#remaining -= at;
    while (at < chunk.length) {
      const header = Buffer.concat([this.#header, chunk.subarray(at, at + 5 - this.#header.length)]);
      at += header.length - this.#header.length;
      this.#header = header;
      if (header[0] !== Request.password && header[0] !== Request.terminate) return false;
      if (header.length < 5) return true;
      const length = header.readInt32BE(1);
      if (length < 4 || length > longestAuthenticationMessage) return false;
      this.#header = Buffer.alloc(0);
      const body = Math.min(length - 4, chunk.length - at);
      this.#remaining = length - 4 - body;
      at += body;
    }
    return true;
  }
}
