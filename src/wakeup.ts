/**
 * A pause that somebody else can end: loops that look for work wait in it.
 * Invariant: a call of `wake` is never lost. One that comes while nobody waits makes the next pause none at all, unless it is forgotten before.
 */
export class Wakeup {
  #woken = false;
  #end: (() => void) | null = null;

  /** There may be something to do. */
  wake(): void {
    this.#woken = true;
    this.#end?.();
  }

  /** Everything is about to be looked at: calls until now are answered by that. */
  forget(): void {
    this.#woken = false;
  }

  /**
   * Returns after so long, or as soon as there may be something to do. Also a pause of no length lets the event loop go round: a loop that found
   * nothing to do and did not have to wait either once kept everything else of its process from running, for ever.
   */
  async pause(ms: number): Promise<void> {
    if (this.#woken || ms <= 0) await new Promise((resolve) => setImmediate(resolve));
    else {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#end = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#end = null;
    }
    this.#woken = false;
  }
}
