/**
 * Which base tables are to be captured.
 * Invariant: it follows from the catalog alone.
 */
import type { BaseTable } from '../../catalog/model.ts';
import type { ReadCatalog } from '../catalog-reader.ts';
import type { CatalogState } from '../context.ts';
import { upkeepOf } from '../view-upkeep.ts';
import { usedByAny } from './shapes.ts';

/** Captured if and only if that is wanted, with the partitions it has now. */
export function inLine(base: BaseTable, wanted: ReadonlySet<number>): boolean {
  if (wanted.has(base.id) !== (base.state === 'captured')) return false;
  return !wanted.has(base.id) || base.parts === base.partsNow || base.partsNow === null;
}

/** Base tables whose changes some view wants. */
export function capturedBases(catalog: ReadCatalog): ReadonlySet<number> {
  const wanted = new Set<number>();
  for (const view of catalog.views.values()) {
    if (!upkeepOf(catalog, view).wantsDeltas) continue;
    for (const input of view.inputs) if (catalog.bases.has(input)) wanted.add(input);
  }
  return wanted;
}

/** Columns of a base table whose changes some view wants. */
export function wantedColumns(state: CatalogState, baseId: number): ReadonlySet<number> {
  return usedByAny(
    [...state.views.values()].filter((view) => upkeepOf(state, view).wantsDeltas),
    baseId,
  );
}
