/**
 * The statements of a view's refresh from few changes, as prepared statements.
 * Invariant: equal names stand for equal text until another takes a name's place, and then the session prepares it anew; so a text may name
 * columns as they are called now.
 */
import type { LiveView } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import type { TableName } from '../../ivm/types.ts';
import { maintainSql } from '../../ivm/view-plan.ts';
import type { Execution } from '../../replication/session-contract.ts';
import { remembering } from '../remembering.ts';

/** Different texts that are kept prepared for one view. */
const variants = 8;

interface Names {
  /** By place. */
  readonly texts: (readonly string[])[];
  next: number;
}

export class RefreshStatements {
  readonly #names = new Map<number, Names>();
  /** Writing the text takes longer than many a small refresh. Plans are read anew with the catalog. */
  readonly #written = remembering<ViewPlan, string, readonly Execution[]>();

  /** `inputs`: those that have changes. */
  of(view: LiveView<ViewPlan>, inputs: readonly number[], delta: TableName, storage: TableName): readonly Execution[] {
    const key = [...inputs.map((input) => `${input} ${delta(input)}`), ...view.inputs.map(storage)].join('\n');
    return this.#written(view.plan, key, () => this.#named(view.id, maintainSql(view.plan, view.id, new Set(inputs), delta, storage)));
  }

  #named(viewId: number, texts: readonly string[]): readonly Execution[] {
    let names = this.#names.get(viewId);
    if (names === undefined) {
      names = { texts: [], next: 0 };
      this.#names.set(viewId, names);
    }
    let place = names.texts.findIndex((known) => known.length === texts.length && known.every((text, i) => text === texts[i]));
    if (place < 0) {
      place = names.next;
      names.next = (place + 1) % variants;
      names.texts[place] = texts;
    }
    return texts.map((sql, i) => ({ name: `r${viewId}_${place}_${i}`, sql }));
  }
}
