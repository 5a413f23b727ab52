/**
 * ALTER SINK .. DRY RUN: what a cutover without a backfill would leave wrong at the target.
 * Invariant: rows and keys are compared by their text, which is what messages are made of; nothing is written.
 */
import type { SinkColumn } from '../catalog/sink-model.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, FieldDescription } from './caller-session.ts';

const bigint = 20;

/** The three scenarios: an old value stays until its key changes; a key is not there until it changes; a key stays although it is gone. */
export const differenceFields: readonly FieldDescription[] = ['stale_keys', 'missing_keys', 'orphaned_keys'].map((name) => ({
  name,
  typeOid: bigint,
  typeModifier: -1,
}));

export interface ComparedRelation {
  /** Qualified and quoted. */
  readonly name: string;
  readonly columns: readonly SinkColumn[];
}

/** One row, as `differenceFields`. */
export async function countDifferences(
  session: CallerSession,
  before: ComparedRelation,
  after: ComparedRelation,
  key: readonly string[] | null,
): Promise<readonly (string | null)[]> {
  const result = await session.query(key === null ? rowDifference(before, after) : keyDifference(before, after, key), [], { quiet: true });
  return result.rows[0] ?? ['0', '0', '0'];
}

const image = (columns: readonly string[]): string => `ROW(${columns.map((name) => `${quoteIdentifier(name)}::text`).join(', ')})::text`;

/** The columns of both, by name, when these are the same; null when they are not. */
function commonColumns(before: ComparedRelation, after: ComparedRelation): readonly string[] | null {
  const sorted = ({ columns }: ComparedRelation): readonly SinkColumn[] => [...columns].sort((a, b) => (a.name < b.name ? -1 : 1));
  const shape = (columns: readonly SinkColumn[]): string =>
    JSON.stringify(columns.map(({ name, typeOid, typmod }) => [name, typeOid, typmod]));
  const columns = sorted(before);
  return shape(columns) === shape(sorted(after)) ? columns.map(({ name }) => name) : null;
}

/** Rows of other columns are other rows: every key that both have is stale. */
function keyDifference(before: ComparedRelation, after: ComparedRelation, key: readonly string[]): string {
  const columns = commonColumns(before, after);
  const side = ({ name }: ComparedRelation, alone: string): string => {
    const row = columns === null ? `'${alone}'::text` : image(columns);
    return `SELECT x.k, pg_catalog.array_agg(x.v ORDER BY x.v COLLATE "C") AS v
              FROM (SELECT ${image(key)} AS k, ${row} AS v FROM ${name}) x GROUP BY x.k`;
  };
  return `
SELECT pg_catalog.count(*) FILTER (WHERE o.k IS NOT NULL AND n.k IS NOT NULL AND o.v IS DISTINCT FROM n.v),
       pg_catalog.count(*) FILTER (WHERE o.k IS NULL),
       pg_catalog.count(*) FILTER (WHERE n.k IS NULL)
  FROM (${side(before, 'o')}) o
  FULL JOIN (${side(after, 'n')}) n ON n.k = o.k`;
}

/** Without a key rows are a multiset: none is stale. */
function rowDifference(before: ComparedRelation, after: ComparedRelation): string {
  const columns = commonColumns(before, after);
  if (columns === null)
    return `SELECT 0, (SELECT pg_catalog.count(*) FROM ${after.name}), (SELECT pg_catalog.count(*) FROM ${before.name})`;
  const side = ({ name }: ComparedRelation): string =>
    `SELECT x.v, pg_catalog.count(*) AS c FROM (SELECT ${image(columns)} AS v FROM ${name}) x GROUP BY x.v`;
  return `
SELECT 0, coalesce(pg_catalog.sum(greatest(coalesce(n.c, 0) - coalesce(o.c, 0), 0)), 0)::bigint,
       coalesce(pg_catalog.sum(greatest(coalesce(o.c, 0) - coalesce(n.c, 0), 0)), 0)::bigint
  FROM (${side(before)}) o
  FULL JOIN (${side(after)}) n ON n.v = o.v`;
}
