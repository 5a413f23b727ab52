/**
 * How fast first copies may go while the stream of their source goes on: where processors are few, rows of a copy keep changes waiting.
 * Invariant: where changes come as soon as ever, or none come, a copy goes as fast as it can; it always goes on.
 *
 * The measure is what users see: how long after its commit a change is applied, compared with the best of late, so that it does not matter by how much
 * the clocks of two hosts differ, nor on which of them processors are scarce. As with TCP's congestion window, the rate falls by a factor when changes
 * come late, and grows again in small steps. It is a rate of bytes and not a share of time: what a copy has sent keeps servers busy for long behind it.
 */

/** Over such a time lateness and speed are looked at, and the rate set anew. */
const intervalMs = 200;
/** Late is what is later than so many times that which one change in twenty is without a copy. */
const [usualShare, tolerance] = [0.95, 1.5];
/** Never less than this, which nobody notices. */
const leastLateMs = 5;
/** So many of the changes may be late. */
const lateShare = 0.1;
/** Bytes a second, whatever becomes of others. */
const leastRate = 4_000_000;
const [fall, growth, idleGrowth] = [0.8, 1.05, 2];
/** The best is forgotten so slowly: ms a second, more than clocks drift. */
const forgetting = 0.5;
/** How quickly the usual follows what is seen, in ms a change. */
const learning = 0.3;
/** So long after its last bytes a copy is over; the next knows nothing of it. */
const overMs = 2_000;
/** A rest that is shorter is taken together with the next. */
const shortestRestMs = 2;

export class GivingWay {
  /** Bytes a second. */
  #rate = Number.POSITIVE_INFINITY;
  /** Least delay of late, clock difference included; null before the first change. */
  #best: number | null = null;
  #bestAt = 0;
  /** How much later than the best one change in twenty comes while nothing is copied. */
  #usual = 5;
  /** Of the present interval: changes, those of them that were late, and bytes copied. */
  #changes = 0;
  #late = 0;
  #copied = 0;
  #began = Number.NEGATIVE_INFINITY;
  /** When what was copied is paid for. */
  #freeAt = 0;

  /** Bytes a second; Infinity: no limit. */
  get rate(): number {
    return this.#rate;
  }

  /** A change was applied `delayMs` after its commit, by the clocks of two hosts. `now`: ms of a clock that runs steadily. */
  applied(delayMs: number, now: number): void {
    this.#best = this.#best === null ? delayMs : Math.min(delayMs, this.#best + ((now - this.#bestAt) * forgetting) / 1000);
    this.#bestAt = now;
    const excess = delayMs - this.#best;
    if (now - this.#began > overMs) {
      this.#usual = Math.max(0, this.#usual + learning * (excess > this.#usual ? usualShare : usualShare - 1));
      return;
    }
    this.#changes++;
    if (excess > Math.max(leastLateMs, tolerance * this.#usual)) this.#late++;
  }

  /** A copy has handed on so many bytes: how long it has to rest before the next, in ms. */
  rest(bytes: number, now: number): number {
    if (now - this.#began > overMs) this.#begin(now, Number.POSITIVE_INFINITY);
    else if (now - this.#began >= intervalMs) this.#begin(now, this.#nextRate(now));
    this.#copied += bytes;
    this.#freeAt = Math.max(this.#freeAt, now) + (bytes * 1000) / this.#rate;
    const rest = this.#freeAt - now;
    return rest < shortestRestMs ? 0 : rest;
  }

  #begin(now: number, rate: number): void {
    this.#rate = rate;
    this.#changes = 0;
    this.#late = 0;
    this.#copied = 0;
    this.#began = now;
  }

  /** By what the interval has shown. */
  #nextRate(now: number): number {
    if (this.#changes === 0) return this.#rate * idleGrowth;
    if (this.#late <= lateShare * this.#changes) return this.#rate * growth;
    const speed = (this.#copied * 1000) / (now - this.#began);
    return Math.max(leastRate, fall * Math.min(this.#rate, speed));
  }
}
