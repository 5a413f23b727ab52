/**
 * What the administrator wants of a session as soon as no transaction of its is open: that it ends, or rests.
 * Invariant: neither happens while a request of the client is under way or half sent.
 */

export interface RestPort {
  /** No transaction is open, and nothing of the client is under way. */
  readonly idle: boolean;
  /** The beginning of a request is here, and the rest is on its way. */
  readonly halfSent: boolean;
  end(): void;
  /** The client is no longer read. */
  pauseClient(): void;
  resumeClient(): void;
}

export class BetweenTransactions {
  readonly #port: RestPort;
  #draining = false;
  #pausing = false;
  #resting = false;

  constructor(port: RestPort) {
    this.#port = port;
  }

  /** Somebody waits for the end of the transaction. */
  get awaited(): boolean {
    return this.#draining || this.#pausing;
  }

  /** Paused, and no transaction is open: nothing of the client goes on before `resume`. */
  get resting(): boolean {
    return this.#resting;
  }

  /** Holds the client's next request, once its transaction has ended. */
  pause(): void {
    this.#pausing = true;
    this.check();
  }

  resume(): void {
    this.#pausing = false;
    if (!this.#resting) return;
    this.#resting = false;
    this.#port.resumeClient();
  }

  /** Ends the session as soon as no transaction is open. */
  drain(): void {
    this.#draining = true;
    this.check();
  }

  /** To be called when a transaction may have ended. */
  check(): void {
    const port = this.#port;
    if (this.#draining && !port.halfSent && port.idle) port.end();
    if (!this.#pausing || !port.idle) return;
    this.#resting = true;
    port.pauseClient();
  }
}
