/**
 * Where the rows of a relation of the stream go.
 * Invariant: values are told apart by attnum. Where the table's shape at the stream's position is known, names mean what they meant there;
 * else what the origin says now is believed, and names as they were last known after it.
 */
import type { Storage } from '../catalog/model.ts';
import type { ServerAddress } from '../config.ts';
import { openOrigin } from '../replication/origin.ts';
import { describeTables, type OriginTable, shapeOf, type TableShape } from '../replication/origin-tables.ts';
import type { RelationMessage } from '../replication/pgoutput.ts';
import { isRehashed } from './apply-sql.ts';
import type { ShapeStep } from './change-batch.ts';
import type { EngineContext } from './context.ts';
import type { NewShape } from './follow-shape.ts';
import { keyChange } from './key-change.ts';
import type { Broken } from './missed-rows.ts';
import { brokenVersions, columnPlaces, lostColumns, type OriginShape, versionsOf } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';
import type { ResolvedRelation, ResolvedTarget, StreamPlace } from './stream-targets.ts';
import { isAsText, widening } from './type-widening.ts';
import { unfed } from './unfed.ts';

export function storagesOf({ state }: Pick<EngineContext, 'state'>, sourceId: number): Storage[] {
  return [...state.storages.values()].filter((storage) => storage.sourceId === sourceId);
}

/** The copy that a storage is being resynchronised by. */
export const resyncOf = (storages: readonly Storage[], id: number): Storage | undefined =>
  storages.find(({ resyncs, state }) => resyncs === id && state !== 'dropped');

/** Storages that want rows of an origin table, with the places of their columns in its Relation message. */
export async function resolveRelation(
  engine: EngineContext,
  source: SourceRow,
  message: RelationMessage,
  { shape, last, mayLearn, isCurrent }: StreamPlace,
  { ahead, note, follow, report }: Following,
): Promise<ResolvedRelation> {
  const storages = storagesOf(engine, source.id).filter(
    (storage) => storage.originOid === message.oid && !storage.stale && ['copying', 'copied', 'live'].includes(storage.state),
  );
  if (storages.length === 0 || source.address === null) return { targets: [], asked: null, steps: [] };
  const here = (): Storage[] => storages.map((storage) => ahead(storage));
  const published = shape === null || !isCurrent ? null : publishedBy(message, shape);
  for (const storage of storages) {
    const broken =
      published === null ? [] : brokenVersions(ahead(storage), versionsOf(engine.state, storage), published, source.name, last);
    if (storage.state === 'live' && broken.length > 0) report(broken);
  }
  const lacking = (targets: readonly Placed[], table: (TableShape & OriginShape) | null): ShapeStep[] => {
    if (!mayLearn || table === null) return [];
    const found = targets.map(({ storage, columns }) => unfed(engine.state, storage, columns, table, source.name));
    const keys = targets.flatMap(({ storage }) => keyChange(storage, message, table, source.name) ?? []);
    const broken = [...keys, ...found.flatMap((one) => one.broken)];
    if (broken.length > 0) report(broken);
    // What is being copied is dealt with when it goes live.
    const lost = targets.flatMap(({ storage, spool, lost: attnums }): ShapeStep[] =>
      spool || attnums.length === 0 ? [] : [{ kind: 'missed', storageId: storage.id, attnums }],
    );
    for (const step of lost) note(step);
    return [...lost, ...found.flatMap(({ steps }) => steps)];
  };
  if (shape !== null && storages.every((storage) => storage.state === 'live')) {
    const table = published ?? shape;
    const targets = here().map((storage) => placed(storage, message, attnumsOf(shape), typesOf(shape), table));
    return { targets, asked: null, steps: lacking(targets, table) };
  }
  const { origin, types } = await ask(source, source.address, message);
  for (const storage of storages) {
    // Judged by what the origin has now: a message from before a column was added lacks it too, and that breaks nothing.
    const broken = brokenVersions(ahead(storage), versionsOf(engine.state, storage), origin, source.name, last);
    if (broken.length > 0) report(broken);
  }
  const steps =
    mayLearn && shape === null && origin !== null
      ? follow({ before: last, after: shapeOf(origin), rewriting: 'unknown', addsEmpty: true })
      : [];
  const attnums = shape === null ? attnumsByName(storages, origin) : attnumsOf(shape);
  const table = published ?? shape ?? origin;
  const targets = here().map((storage) => placed(storage, message, attnums, types, table));
  return { targets, asked: origin === null ? null : shapeOf(origin), steps: [...steps, ...lacking(targets, table)] };
}

export interface Following {
  /** A storage as it will be once what is on its way has reached it. */
  readonly ahead: (storage: Storage) => Storage;
  /** This is on its way to it. */
  readonly note: (step: ShapeStep) => void;
  /** What the new shape of a table asks of its storages. */
  readonly follow: (shape: NewShape) => readonly ShapeStep[];
  readonly report: (broken: readonly Broken[]) => void;
}

/** The table of a Relation message as the origin has it now, and the types of the message by the names of its columns. */
async function ask(
  source: SourceRow,
  address: ServerAddress,
  message: RelationMessage,
): Promise<{ readonly origin: OriginTable | null; readonly types: ReadonlyMap<string, string> }> {
  const client = await openOrigin(address, { applicationName: 'millrace' });
  try {
    const origin = (await describeTables(client, [message.oid], { publication: source.publication })).get(message.oid) ?? null;
    const formatted = await client.query<{ name: string; type: string }>(
      `SELECT c.name, pg_catalog.format_type(c.type, c.typmod) AS type
         FROM pg_catalog.json_to_recordset($1::json) AS c(name text, type oid, typmod integer)`,
      [JSON.stringify(message.columns.map((column) => ({ name: column.name, type: column.typeOid, typmod: column.typmod })))],
    );
    return { origin, types: new Map(formatted.rows.map(({ name, type }) => [name, type])) };
  } finally {
    await client.end().catch(() => undefined);
  }
}

interface Placed extends ResolvedTarget {
  /** attnums of columns that a storage without key has, and the origin no more, or with another type. */
  readonly lost: readonly number[];
}

/** The place of a storage's columns in a Relation message. */
function placed(
  storage: Storage,
  message: RelationMessage,
  attnums: ReadonlyMap<string, number>,
  types: ReadonlyMap<string, string>,
  table: OriginShape | null,
): Placed {
  const typeOf = new Map(message.columns.flatMap(({ name }) => (attnums.has(name) ? [[attnums.get(name), types.get(name)]] : [])));
  // A row from before a column got its wider type is good, too.
  const unusable = storage.columns.filter(({ attnum, type, originType }) => {
    const sent = typeOf.get(attnum);
    return !isAsText({ type, originType }) && sent !== undefined && sent !== originType && widening(sent, originType) === null;
  });
  const columns = columnPlaces(storage, message.columns, attnums, new Set(unusable.map(({ attnum }) => attnum)));
  const lost = lostColumns(storage, table);
  return {
    storage,
    columns,
    spool: storage.state !== 'live',
    lost,
    rehash: lost.length > 0 || (storage.keyAttnums.length === 0 && isRehashed(storage)),
  };
}

/** The origin sends nothing of a column that its publication has not. */
function publishedBy(message: RelationMessage, shape: TableShape): TableShape & OriginShape {
  const names = new Set(message.columns.map(({ name }) => name));
  return { ...shape, publishedColumns: shape.columns.flatMap(({ attnum, name }) => (names.has(name) ? [attnum] : [])) };
}

const attnumsOf = (shape: TableShape): ReadonlyMap<string, number> => new Map(shape.columns.map(({ name, attnum }) => [name, attnum]));
const typesOf = (shape: TableShape): ReadonlyMap<string, string> =>
  new Map(shape.columns.map(({ name, formattedType }) => [name, formattedType]));

/** Names of columns, in the order they are to be believed: as the origin has them now, else as they were last known. */
function attnumsByName(storages: readonly Storage[], origin: OriginTable | null): Map<string, number> {
  const attnums = new Map<string, number>();
  for (const storage of storages) for (const column of storage.columns) attnums.set(column.name, column.attnum);
  if (origin === null) return attnums;
  // A name that now belongs to another column (dropped and added again) must not find the old one.
  for (const column of origin.columns) {
    for (const [name, attnum] of attnums)
      if (attnum === column.attnum && name !== column.name && !origin.columns.some((other) => other.name === name))
        attnums.set(name, attnum);
    attnums.set(column.name, column.attnum);
  }
  return attnums;
}
