/**
 * How a view is kept: in every epoch that changes an input, or from changes set aside until it is due. Pure.
 * Invariant: a view reads ordinary tables only in an epoch that knows their changes up to its own snapshot, so views over them, and stream
 * tables, take part in the others only by setting aside what changed.
 */
import type { LiveView } from '../catalog/model.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import type { CatalogState } from './context.ts';

export interface Upkeep {
  /** Kept up to date in the epochs that change its inputs. */
  readonly atOnce: boolean;
  /** Changes of its inputs are set aside. */
  readonly aside: boolean;
  /** Its base tables have to be captured. */
  readonly wantsDeltas: boolean;
}

const nothing: Upkeep = { atOnce: false, aside: false, wantsDeltas: false };

type States = Pick<CatalogState, 'streams' | 'bases'>;

/** A stream table, or a view that reads an ordinary table. */
export function isDeferred({ streams, bases }: States, view: LiveView<ViewPlan>): boolean {
  return streams.has(view.id) || view.inputs.some((input) => bases.has(input));
}

export function upkeepOf(state: States, view: LiveView<ViewPlan>): Upkeep {
  if (view.state === 'error' || view.state === 'dropped') return nothing;
  const stream = state.streams.get(view.id);
  const deferred = isDeferred(state, view);
  if (stream !== undefined) {
    if (stream.refreshMode !== 'DIFFERENTIAL' || stream.status === 'SUSPENDED' || stream.status === 'ERROR') return nothing;
    if (view.state === 'ready' && stream.deltaLost !== null) return { ...nothing, wantsDeltas: true };
  }
  return {
    atOnce: view.state === 'ready' && !deferred,
    aside: view.state === 'populating' || (view.state === 'ready' && deferred),
    wantsDeltas: true,
  };
}
