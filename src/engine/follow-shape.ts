/**
 * What a new shape of an origin's table asks of its storages.
 * Invariant: a wider type is followed only where it is known that every value is what a cast makes of the old one. ALTER TABLE .. USING may make anything of
 * them, and sends no row: then the versions that show the column say so.
 */
import type { RelationError, Storage } from '../catalog/model.ts';
import type { Rewriting } from '../replication/ddl-messages.ts';
import type { OriginColumn, TableShape } from '../replication/origin-tables.ts';
import { renamedLabels } from '../replication/table-changes.ts';
import { quoteQualified } from '../sql/quote.ts';
import { columnsWrittenUsing } from '../sql/rewriting.ts';
import { without } from './apply-sql.ts';
import type { ShapeStep, WidenedColumn } from './change-batch.ts';
import type { EngineContext } from './context.ts';
import { notYetMissed, withoutValues } from './left-out.ts';
import type { Broken } from './missed-rows.ts';
import { alteredError, missedError, rewrittenError } from './relation-errors.ts';
import { storagesOf } from './relation-targets.ts';
import { otherType, versionsOf } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';
import { isAsText, keepsText, mayFollow } from './type-widening.ts';
import { withTypes } from './widen.ts';

/** Storages as they will be once the steps on their way have reached them. */
export class StoragesAhead {
  readonly #steps = new Map<number, ShapeStep[]>();

  of(storage: Storage): Storage {
    // A column with missing values may be filled again while the stream goes on: the catalog says when.
    const passes = (step: ShapeStep): boolean => step.kind === 'missed' && storage.keyAttnums.length > 0;
    return (this.#steps.get(storage.id) ?? []).reduce((known, step) => (passes(step) ? known : reshaped(known, step)), storage);
  }

  note(step: ShapeStep): void {
    const steps = this.#steps.get(step.storageId);
    if (steps === undefined) this.#steps.set(step.storageId, [step]);
    else steps.push(step);
  }
}

/** The storage once a step has been taken. Taking it twice changes nothing. */
export function reshaped(storage: Storage, step: ShapeStep): Storage {
  switch (step.kind) {
    case 'copy again':
      return storage;
    case 'missed':
      return storage.keyAttnums.length > 0 ? withoutValues(storage, step.attnums) : without(storage, step.attnums);
    case 'widen':
      return withTypes(storage, step.columns);
    case 'relabel':
      if (storage.keyAttnums.length > 0) return storage;
      return {
        ...storage,
        columns: storage.columns.map((column) => (step.attnums.includes(column.attnum) ? { ...column, rehashed: true as const } : column)),
      };
  }
}

export interface NewShape {
  /** Undefined: nothing was known of the table. */
  readonly before: TableShape | undefined;
  readonly after: TableShape;
  /** As a message told; 'unknown': the catalog was looked at. */
  readonly rewriting: Rewriting | null | 'unknown';
  /** Partitions that came are new, hence empty. */
  readonly addsEmpty: boolean;
}

/** Steps for the storages of a table, in order; they are noted as on their way. Versions that cannot follow are reported. */
export function followShape(
  { state }: Pick<EngineContext, 'state'>,
  source: SourceRow,
  ahead: StoragesAhead,
  shape: NewShape,
  report: (broken: readonly Broken[]) => void,
): ShapeStep[] {
  const steps: ShapeStep[] = [];
  for (const stored of storagesOf({ state }, source.id)) {
    if (stored.originOid !== shape.after.oid || !['copying', 'copied', 'live'].includes(stored.state)) continue;
    const found = changesOf(ahead.of(stored), shape);
    if (found.widened.length > 0) steps.push({ kind: 'widen', storageId: stored.id, columns: found.widened });
    for (const { type, labels, attnums } of found.relabelled) steps.push({ kind: 'relabel', storageId: stored.id, type, labels, attnums });
    const parts = partsChanged(shape);
    if (stored.state !== 'live' && (parts !== null || found.unknown.length > 0)) steps.push({ kind: 'copy again', storageId: stored.id });
    // What is stale has a copy of its own.
    if (stored.state !== 'live' || stored.stale) continue;
    const reference = quoteQualified(shape.after.schema, shape.after.name);
    if (parts !== null) report([{ storageId: stored.id, error: missedError({ reference, problem: parts, source: source.name }) }]);
    const now = ahead.of(stored);
    const missed = notYetMissed(state, now, found.unknown);
    if (missed.length > 0) steps.push({ kind: 'missed', storageId: stored.id, attnums: missed });
    const errorOf = (attnum: number): RelationError => {
      const column = found.rewritten.find((one) => one.attnum === attnum);
      return column === undefined
        ? otherTypeError(now, shape.after, attnum, source.name)
        : rewrittenError({ reference, source: source.name, ...column });
    };
    // Rows are not found by their old keys; and what an extension has got of a column is of no use to any version.
    const decisive = found.unknown.find((attnum) => stored.keyAttnums.includes(attnum) || stored.extends !== null);
    if (decisive !== undefined) report([{ storageId: stored.id, error: errorOf(decisive) }]);
    report(
      versionsOf(state, stored).flatMap((version) => {
        const column = found.rewritten.find(({ attnum }) => version.columns.some((shown) => shown.attnum === attnum));
        return column === undefined ? [] : [{ relationId: version.id, error: errorOf(column.attnum) }];
      }),
    );
  }
  for (const step of steps) ahead.note(step);
  return steps;
}

function otherTypeError(storage: Storage, table: TableShape, attnum: number, source: string): RelationError {
  const had = storage.columns.find((column) => column.attnum === attnum);
  const has = table.columns.find((column) => column.attnum === attnum);
  const problem = otherType(had ?? { name: '', originType: '' }, has?.formattedType ?? '', `${table.schema}.${table.name}`);
  return alteredError({ reference: quoteQualified(table.schema, table.name), problem, source });
}

interface Rewritten {
  readonly attnum: number;
  readonly name: string;
  /** Its new type; null: it has the type that it had. */
  readonly type: string | null;
  /** A copy of the table makes it right again. */
  readonly isMendable: boolean;
}

interface Relabelled {
  readonly type: string;
  readonly labels: readonly { readonly from: string; readonly to: string }[];
  readonly attnums: readonly number[];
}

interface ShapeChanges {
  readonly widened: readonly WidenedColumn[];
  readonly relabelled: readonly Relabelled[];
  /** Versions that show them say so. */
  readonly rewritten: readonly Rewritten[];
  /** attnums of all columns whose stored values may no longer be the origin's. */
  readonly unknown: readonly number[];
}

/** Pure. */
export function changesOf(storage: Storage, shape: NewShape): ShapeChanges {
  const { before, after } = shape;
  const was = new Map(before?.columns.map((column) => [column.attnum, column]));
  const is = new Map(after.columns.map((column) => [column.attnum, column]));
  const isOther = (old: OriginColumn, now: OriginColumn): boolean => old.typeOid !== now.typeOid || old.typmod !== now.typmod;
  const someOther = [...is].some(([attnum, now]) => {
    const old = was.get(attnum);
    return old !== undefined && isOther(old, now);
  });
  const kept = valuesKept(shape, someOther);
  const widened: WidenedColumn[] = [];
  const rewritten: Rewritten[] = [];
  const unknown: number[] = [];
  const relabelled = new Map<string, { type: string; labels: Relabelled['labels']; attnums: number[] }>();
  for (const column of storage.columns) {
    const { attnum } = column;
    const [old, now] = [was.get(attnum), is.get(attnum)];
    if (now === undefined || column.lost === true) continue;
    const other = old === undefined ? column.originType !== now.formattedType : isOther(old, now);
    if (!kept(old, now, other)) {
      unknown.push(attnum);
      const isMendable = !other || isAsText(column) || (storage.keyAttnums.length > 0 && mayFollow(column, now.formattedType));
      if (isMendable) rewritten.push({ attnum, name: now.name, type: other ? now.formattedType : null, isMendable });
      else if (mayFollow(column, now.formattedType)) rewritten.push({ attnum, name: now.name, type: now.formattedType, isMendable });
      continue;
    }
    if (column.originType !== now.formattedType) {
      if (!other && old !== undefined && old.formattedType === column.originType)
        widened.push({ attnum, originType: now.formattedType, renamed: true });
      else if (mayFollow(column, now.formattedType)) widened.push({ attnum, originType: now.formattedType });
      else if (isAsText(column) && keepsText(column.originType, now.formattedType))
        widened.push({ attnum, originType: now.formattedType, renamed: true });
      else {
        unknown.push(attnum);
        if (isAsText(column)) rewritten.push({ attnum, name: now.name, type: now.formattedType, isMendable: true });
      }
    } else if (other && old !== undefined) {
      // It has its type again. What it was meanwhile was taken for what it is not, or not at all.
      unknown.push(attnum);
    }
    const labels = old === undefined ? [] : renamedLabels(old, now);
    if (labels.length === 0) continue;
    if (column.type === 'text' && column.originType.endsWith('[]')) {
      unknown.push(attnum);
      rewritten.push({ attnum, name: now.name, type: null, isMendable: true });
      continue;
    }
    const type = column.type.replace(/\[\]$/, '');
    const known = relabelled.get(type);
    if (known === undefined) relabelled.set(type, { type, labels, attnums: [attnum] });
    else known.attnums.push(attnum);
  }
  return { widened, relabelled: [...relabelled.values()], rewritten, unknown };
}

/** Rows that came or went with a partition: the origin sends none of them. */
function partsChanged({ before, after, addsEmpty }: NewShape): string | null {
  if (before?.parts == null || after.parts == null) return null;
  const [had, has] = [before.parts, after.parts];
  if (had.some(({ oid }) => !has.some((part) => part.oid === oid))) return 'has lost a partition';
  const came = has.filter(({ oid }) => !had.some((part) => part.oid === oid));
  return !addsEmpty && came.some(({ isEmpty }) => !isEmpty) ? 'has got a partition with rows' : null;
}

/** Whether the values of a column are what a cast makes of the old ones, as far as is known. */
function valuesKept(
  { before, after, rewriting }: NewShape,
  someOther: boolean,
): (old: OriginColumn | undefined, now: OriginColumn, isOther: boolean) => boolean {
  if (rewriting === null) return () => true;
  if (rewriting === 'unknown') {
    const sameFile = after.relkind === 'r' && after.filenode !== undefined && before?.filenode === after.filenode;
    return (_old, _now, isOther) => !isOther || sameFile;
  }
  const using = rewriting.query === null ? null : columnsWrittenUsing(rewriting.query);
  // Where it cannot be told, another type explains why the table was written anew.
  if (using === null) return (_old, _now, isOther) => !isOther && someOther;
  return (old, now) => !using.has(now.name) && !(old !== undefined && using.has(old.name));
}
