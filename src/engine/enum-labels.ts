/**
 * Values that an enum has got at the origin since the type of that name was made here.
 * Invariant: values are added, in the origin's order; none is removed, because rows here may have it. Renamed ones come by the stream (relabel.ts).
 */
import type { Storage } from '../catalog/model.ts';
import { openOrigin } from '../replication/origin.ts';
import type { PostgresError } from '../replication/postgres-error.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { EngineContext } from './context.ts';

/** Enums of the columns of a table, and of their arrays, with their labels in order. $1: the table. */
const originEnumsSql = `
SELECT pg_catalog.format_type(e.enumtypid, NULL) AS type, pg_catalog.array_agg(e.enumlabel::text ORDER BY e.enumsortorder) AS labels
  FROM (SELECT DISTINCT CASE WHEN t.typtype = 'e' THEN t.oid ELSE t.typelem END AS oid
          FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped) u
  JOIN pg_catalog.pg_enum e ON e.enumtypid = u.oid
 GROUP BY e.enumtypid`;

/**
 * To be called when a value was refused (22P02): adds the labels that are missing upstream, over a session of its own, so that an open transaction
 * can use them. True when there were some.
 */
export async function followEnums(engine: EngineContext, storage: Storage, reason: PostgresError): Promise<boolean> {
  const address = engine.state.sources.get(storage.sourceId)?.address ?? null;
  if (reason.code !== '22P02' || address === null) return false;
  const origin = await openOrigin(address, { applicationName: 'millrace' });
  let enums: { type: string; labels: string[] }[];
  try {
    enums = (await origin.query<{ type: string; labels: string[] }>(originEnumsSql, [storage.originOid])).rows;
  } finally {
    await origin.end().catch(() => undefined);
  }
  let added = false;
  for (const { type, labels } of enums) {
    const known = await engine.admin.query<{ label: string }>(
      'SELECT e.enumlabel::text AS label FROM pg_catalog.pg_enum e WHERE e.enumtypid = pg_catalog.to_regtype($1)',
      [type],
    );
    if (known.rows.length === 0) continue;
    const there = new Set(known.rows.map(({ label }) => label));
    for (const sql of addedLabels(type, labels, there)) {
      try {
        await engine.admin.query(sql);
      } catch (error) {
        // The type is somebody else's: the table cannot take the value, and says so.
        if (!(error instanceof Error) || !('code' in error) || error.code !== '42501') throw error;
        return false;
      }
      added = true;
      engine.log.info(
        { type, table: `${storage.originSchema}.${storage.originName}` },
        'an enum has got a value that it has at the origin',
      );
    }
  }
  return added;
}

/** Pure: statements that add the labels that are not there, each next to a neighbour. */
export function addedLabels(type: string, labels: readonly string[], there: ReadonlySet<string>): string[] {
  const known = new Set(there);
  return labels.flatMap((label, i) => {
    if (known.has(label)) return [];
    known.add(label);
    const before = labels[i - 1];
    const after = labels.slice(i + 1).find((other) => there.has(other));
    const place = before !== undefined ? ` AFTER ${quoteLiteral(before)}` : after === undefined ? '' : ` BEFORE ${quoteLiteral(after)}`;
    return [`ALTER TYPE ${type} ADD VALUE IF NOT EXISTS ${quoteLiteral(label)}${place}`];
  });
}
