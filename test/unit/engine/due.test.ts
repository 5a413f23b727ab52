import { describe, expect, test } from 'vitest';
import type { LiveView, StreamTable } from '../../../src/catalog/model.ts';
import type { CatalogState } from '../../../src/engine/context.ts';
import { dueViews } from '../../../src/engine/streams/due.ts';
import type { ViewPlan } from '../../../src/ivm/plans.ts';

interface Given {
  readonly id: number;
  readonly reads: readonly number[];
  readonly schedule?: string | null;
  readonly stream?: Partial<StreamTable>;
}

/** Stream tables over the base tables 1 to 9. */
function catalog(given: readonly Given[]): CatalogState {
  const views = given.map(({ id, reads }): [number, LiveView<ViewPlan>] => [
    id,
    {
      id,
      kind: 'view',
      facade: id,
      gate: id,
      state: 'ready',
      error: null,
      definition: 0,
      position: null,
      plan: { body: {} } as never,
      inputs: reads,
    },
  ]);
  const streams = given.map(({ id, schedule = 'calculated', stream = {} }): [number, StreamTable] => [
    id,
    {
      relationId: id,
      schedule,
      refreshMode: 'DIFFERENTIAL',
      status: 'ACTIVE',
      isPopulated: true,
      initialize: true,
      consecutiveErrors: 0,
      refreshRequested: 0,
      refreshDone: 0,
      reinitialize: false,
      deltaLost: null,
      plannedTypes: {},
      nextRefreshAt: null,
      lastRefreshAt: null,
      triggered: false,
      replaces: null,
      replacesWith: null,
      schema: 'public',
      name: `t${id}`,
      ...stream,
    },
  ]);
  const bases = [1, 2, 3].map((id): [number, never] => [id, { id } as never]);
  return {
    sources: new Map(),
    storages: new Map(),
    tables: new Map(),
    captured: new Set(),
    outboxes: new Set(),
    upsertOutboxes: new Set(),
    sinks: new Map(),
    subscriptions: new Map(),
    bases: new Map(bases),
    streams: new Map(streams),
    views: new Map(views),
  };
}

const now = 1_000_000;

function due(
  state: CatalogState,
  changed: readonly number[] = [],
  heard: Readonly<Record<number, number>> = {},
): { readonly views: Record<string, string>; readonly nextAt: number | null } {
  const found = dueViews(state, {
    now,
    hasChanges: (view) => changed.includes(view.id) || view.inputs.some((input) => changed.includes(input)),
    remembered: () => undefined,
    requested: (viewId) => heard[viewId] ?? 0,
  });
  return { views: Object.fromEntries(found.views), nextAt: found.nextAt };
}

describe('which stream tables are due', () => {
  test('a calculated one when something it reads has changed', () => {
    const state = catalog([{ id: 10, reads: [1] }]);
    expect(due(state)).toEqual({ views: {}, nextAt: null });
    expect(due(state, [1]).views).toEqual({ 10: 'changes' });
  });

  test('a scheduled one at its time, changes or not', () => {
    const at = (nextRefreshAt: number): CatalogState => catalog([{ id: 10, reads: [1], schedule: '1m', stream: { nextRefreshAt } }]);
    expect(due(at(now + 5000), [1])).toEqual({ views: {}, nextAt: now + 5000 });
    expect(due(at(now - 1)).views).toEqual({ 10: 'schedule' });
  });

  test('a calculated one that others read waits for them, and comes with them', () => {
    const state = catalog([
      { id: 10, reads: [1] },
      { id: 11, reads: [10], schedule: '1m', stream: { nextRefreshAt: now + 1 } },
    ]);
    expect(due(state, [1])).toEqual({ views: {}, nextAt: now + 1 });
    const later = catalog([
      { id: 10, reads: [1] },
      { id: 11, reads: [10], schedule: '1m', stream: { nextRefreshAt: now } },
    ]);
    expect(due(later, [1]).views).toEqual({ 10: 'with dependents', 11: 'schedule' });
  });

  test('a chain of calculated ones is due as a whole when its beginning has changed', () => {
    const state = catalog([
      { id: 10, reads: [1] },
      { id: 11, reads: [10] },
      { id: 12, reads: [11, 2] },
    ]);
    expect(due(state, [1]).views).toEqual({ 10: 'with dependents', 11: 'with dependents', 12: 'changes' });
    expect(due(state, [3]).views).toEqual({});
  });

  test('the sides of a diamond come together, whatever their schedules; a chain does not pull', () => {
    const diamond = catalog([
      { id: 10, reads: [1], schedule: '1h', stream: { nextRefreshAt: now + 1 } },
      { id: 11, reads: [1], schedule: '1d', stream: { nextRefreshAt: now + 1 } },
      { id: 12, reads: [10, 11], schedule: '1m', stream: { nextRefreshAt: now } },
    ]);
    expect(due(diamond).views).toEqual({ 10: 'diamond', 11: 'diamond', 12: 'schedule' });
    const apart = catalog([
      { id: 10, reads: [1], schedule: '1h', stream: { nextRefreshAt: now + 1 } },
      { id: 11, reads: [2], schedule: '1d', stream: { nextRefreshAt: now + 1 } },
      { id: 12, reads: [10, 11], schedule: '1m', stream: { nextRefreshAt: now } },
    ]);
    expect(due(apart).views).toEqual({ 12: 'schedule' });
  });

  test('what is asked for comes at once; what is paused or suspended never', () => {
    const stream = { refreshRequested: 3, refreshDone: 2 };
    expect(due(catalog([{ id: 10, reads: [1], schedule: '1h', stream: { ...stream, nextRefreshAt: now + 9 } }])).views).toEqual({
      10: 'manual',
    });
    expect(due(catalog([{ id: 10, reads: [1], stream: { ...stream, status: 'PAUSED' } }]), [1]).views).toEqual({});
    expect(due(catalog([{ id: 10, reads: [1], stream: { status: 'SUSPENDED' } }]), [1]).views).toEqual({});
  });

  test('a request is enough that the catalog, as it was read, does not have', () => {
    const state = catalog([
      { id: 10, reads: [1], schedule: '1h', stream: { refreshRequested: 2, refreshDone: 2, nextRefreshAt: now + 9 } },
    ]);
    expect(due(state, [], { 10: 3 }).views).toEqual({ 10: 'manual' });
    expect(due(state, [], { 10: 2 }).views).toEqual({});
  });

  test('after a failure it waits, although its input has changed', () => {
    const state = catalog([{ id: 10, reads: [1], stream: { consecutiveErrors: 1, nextRefreshAt: now + 500 } }]);
    expect(due(state, [1])).toEqual({ views: {}, nextAt: now + 500 });
  });

  test('one whose changes were lost is due without any', () => {
    expect(due(catalog([{ id: 10, reads: [1], stream: { deltaLost: 'TRUNCATE' } }])).views).toEqual({ 10: 'changes' });
  });
});
