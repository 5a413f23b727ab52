/**
 * What a subscriber knows, from the rows it was given, and nothing else.
 * Invariant: `states` has what it knew at each timestamp that was declared complete, in order; rows that cannot be (a row that goes without having
 * come, a before-image that is not the one known) throw.
 */
import type { Row } from '../../integration/subscribe/stage.ts';

export type Dress = 'plain' | 'upsert' | 'debezium';

export interface State {
  readonly ts: number;
  /** Rows as JSON, sorted. */
  readonly rows: readonly string[];
}

export class Subscriber {
  readonly states: State[] = [];
  readonly #dress: Dress;
  readonly #key: string;
  /** Rows as JSON and how often they are there. */
  #rows: Map<string, number>;
  #ts = 0;

  constructor(dress: Dress, key: string, from: readonly string[] = []) {
    this.#dress = dress;
    this.#key = key;
    this.#rows = new Map();
    for (const row of from) this.#add(row, 1);
  }

  take(row: Row): void {
    const { mz_timestamp, mz_progressed, mz_diff, mz_state, ...values } = row;
    const ts = Number(mz_timestamp);
    if (ts < this.#ts) throw new Error(`time goes back: ${JSON.stringify(row)}`);
    this.#ts = ts;
    if (mz_progressed === 't') {
      for (const [json, count] of this.#rows) if (count < 0) throw new Error(`${json} is there ${count} times at ${ts}`);
      this.states.push({ ts, rows: [...this.#rows].flatMap(([json, count]) => Array.from({ length: count }, () => json)).sort() });
      return;
    }
    if (this.#dress === 'plain') {
      this.#add(JSON.stringify(values), Number(mz_diff));
      return;
    }
    if (mz_state === 'key_violation') throw new Error(`the key is violated: ${JSON.stringify(row)}`);
    const known = [...this.#rows.keys()].find((json) => (JSON.parse(json) as Row)[this.#key] === values[this.#key]);
    if (this.#dress === 'upsert') {
      if (known !== undefined) this.#rows.delete(known);
      else if (mz_state === 'delete') throw new Error(`nothing to delete: ${JSON.stringify(row)}`);
      if (mz_state === 'upsert') this.#add(JSON.stringify(values), 1);
      return;
    }
    const image = (prefix: string): string =>
      JSON.stringify(
        Object.fromEntries(
          Object.entries(values).flatMap(([name, value]) =>
            name === this.#key ? [[name, value]] : name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [],
          ),
        ),
      );
    if ((mz_state === 'insert') !== (known === undefined)) throw new Error(`${mz_state} of ${JSON.stringify(row)}, known is ${known}`);
    if (known !== undefined) {
      if (image('before_') !== known) throw new Error(`before is ${image('before_')}, known is ${known}`);
      this.#rows.delete(known);
    }
    if (mz_state !== 'delete') this.#add(image('after_'), 1);
  }

  #add(json: string, weight: number): void {
    const count = (this.#rows.get(json) ?? 0) + weight;
    if (count === 0) this.#rows.delete(json);
    else this.#rows.set(json, count);
  }
}

/** Throws unless every state is one of `history`, in its order; answers whether the last one is the last. */
export function follows(name: string, states: readonly State[], history: readonly (readonly string[])[]): boolean {
  let at = 0;
  for (const state of states) {
    const wanted = JSON.stringify(state.rows);
    const found = history.findIndex((rows, index) => index >= at && JSON.stringify(rows) === wanted);
    if (found === -1) {
      throw new Error(
        `${name} at ${state.ts} is\n${wanted}\nwhich never was, from\n${history
          .slice(at)
          .map((rows) => JSON.stringify(rows))
          .join('\n')}`,
      );
    }
    at = found;
  }
  return states.length > 0 && JSON.stringify(states.at(-1)?.rows) === JSON.stringify(history.at(-1));
}
