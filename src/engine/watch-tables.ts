/**
 * What an origin's catalog says of the tables in use: a DDL that no write follows, or that nobody tells of, is seen this way.
 * Invariant: it is older than what the stream has told meanwhile, and newer than what it has not: a table that was told of while the question was under way is
 * asked for again.
 */
import type { Client } from 'pg';
import type { Storage } from '../catalog/model.ts';
import { describeTables, shapeOf } from '../replication/origin-tables.ts';
import type { EngineContext } from './context.ts';
import type { StoragesAhead } from './follow-shape.ts';
import type { Broken } from './missed-rows.ts';
import { brokenVersions, versionsOf } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';
import type { SourceRunner } from './source-runner.ts';
import { isMendable } from './successors.ts';
import { unsent } from './unpublished.ts';

export interface WatchedSource {
  readonly source: SourceRow;
  readonly runner: SourceRunner;
  readonly ahead: StoragesAhead;
}

/** Answers what can no longer be kept. Storages get the names that their tables have; where it is wanted, and can be, a resynchronisation is asked for. */
export async function watchTables(
  engine: EngineContext,
  client: Client,
  { source, runner, ahead }: WatchedSource,
  asked: readonly Storage[],
): Promise<Broken[]> {
  const oids = [...new Set(asked.map((storage) => storage.originOid))];
  const told = new Map(oids.map((oid) => [oid, runner.lastShape(oid)]));
  const answered = await describeTables(client, oids, { publication: source.publication });
  // What the stream has told of a table meanwhile is newer than the answer, which would look as if it were undone: next time.
  const outrun = new Set(oids.filter((oid) => runner.lastShape(oid) !== told.get(oid)));
  const tables = new Map([...answered].filter(([oid]) => !outrun.has(oid)));
  // As they are by now; what is stale is judged when it has been resynchronised.
  const storages = asked.flatMap(({ id, originOid }) => {
    const storage = outrun.has(originOid) ? undefined : engine.state.storages.get(id);
    return storage === undefined || storage.stale ? [] : [storage];
  });
  const known = new Map([...tables.keys()].map((oid) => [oid, runner.lastShape(oid)]));
  for (const table of tables.values()) runner.looked(shapeOf(table));
  if (engine.state.sources.get(source.id)?.autoResync === true && (await isMendable(engine, client, source, tables))) {
    await engine.admin.query('UPDATE millrace.source SET resync_requested = true WHERE id = $1', [source.id]);
    engine.wake();
    return [];
  }
  const broken: Broken[] = [];
  for (const storage of storages) {
    const origin = tables.get(storage.originOid) ?? null;
    const versions = versionsOf(engine.state, storage);
    broken.push(...brokenVersions(ahead.of(storage), versions, origin, source.name, known.get(storage.originOid)));
    if (origin === null) continue;
    broken.push(...[unsent(storage, origin, source)].filter((one) => one !== null));
    if (origin.schema === storage.originSchema && origin.name === storage.originName) continue;
    await engine.admin.query('UPDATE millrace.storage SET origin_schema = $2, origin_name = $3 WHERE id = $1', [
      storage.id,
      origin.schema,
      origin.name,
    ]);
    engine.wake();
  }
  return broken;
}
