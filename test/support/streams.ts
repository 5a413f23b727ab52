/**
 * Stream tables made by their catalog rows alone, for tests of the engine: what pgtrickle.create_stream_table leaves behind.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import { ensureCatalog } from '../../src/catalog/install.ts';
import { definitionView, gateView, storageTable } from '../../src/catalog/model.ts';
import { gateSql } from '../../src/catalog/storage-ddl.ts';
import { type BaseShape, baseStorage, shapesOf } from '../../src/engine/base/shapes.ts';
import { analyzeView, viewFunctions } from '../../src/ivm/analyze.ts';
import { functionKindsSql, planView } from '../../src/ivm/plan-view.ts';
import { loadViewParser } from '../../src/ivm/source-text.ts';
import type { LiveRelation, RelationLookup } from '../../src/ivm/types.ts';
import { asLiveRelation, storageDdl, visibleColumns } from '../../src/ivm/view-plan.ts';
import { quoteIdentifier } from '../../src/sql/quote.ts';
import { testKey, texts } from './engine.ts';

export interface StreamOptions {
  readonly schedule?: string | null;
  readonly mode?: 'DIFFERENTIAL' | 'FULL';
}

/** Installs the catalog; to be called once before anything else. */
export async function installCatalog(client: pg.Client): Promise<void> {
  await ensureCatalog(client, testKey);
  await loadViewParser();
}

/** Makes a stream table `public.<name>` and answers its id. Its relations are named with their schema or are in public. */
export async function createStream(client: pg.Client, name: string, query: string, options: StreamOptions = {}): Promise<number> {
  const scratch = 'pg_temp.new_stream';
  await client.query('BEGIN');
  try {
    await client.query(`CREATE TEMP VIEW new_stream AS ${query}`);
    const definition = (await client.query(`SELECT millrace.definition_of('${scratch}'::regclass) AS text`)).rows[0]?.text as string;
    const read = await client.query<{ oid: string; schema: string; name: string; relation: string | null; plan: never; names: string[] }>(
      `SELECT r.relation::text AS oid, r.schema, r.name, r.relation_id::text AS relation, r.plan,
              (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = r.relation AND a.attnum > 0 AND NOT a.attisdropped) AS names
         FROM millrace.relations_read('${scratch}'::regclass) r`,
    );
    const relations = new Map<string, LiveRelation>();
    const shapes = new Map<number, BaseShape>();
    for (const row of read.rows) {
      if (row.relation !== null) {
        const live = asLiveRelation(row.plan, Number(row.relation));
        relations.set(`${row.schema}.${row.name}`, live);
        continue;
      }
      const id = await baseRelation(client, row.oid);
      const shape = (await client.query({ text: shapesOf([id]).sql, values: [[id]] })).rows[0]?.coalesce[0] as BaseShape;
      shapes.set(id, shape);
      const key = await client.query<{ attnum: number }>(
        'SELECT unnest(key_attnums) AS attnum FROM millrace.base_table WHERE relation_id = $1',
        [id],
      );
      relations.set(`${row.schema}.${row.name}`, {
        kind: 'live',
        id,
        key: key.rows.map(({ attnum }) => `c${attnum}`),
        columns: shape.columns.map((column) => ({ name: column.name, expression: `s.c${column.attnum}` })),
      });
    }
    const lookup: RelationLookup = (schema, table) => relations.get(`${schema ?? 'pg_catalog'}.${table}`);
    const storage = (input: number): string => {
      const shape = shapes.get(input);
      return shape === undefined ? storageTable(input) : baseStorage(shape);
    };
    const kinds = await client.query(functionKindsSql, [viewFunctions(definition, lookup)]);
    const functions = Object.fromEntries(
      kinds.rows.map((row) => [row.name, { aggregate: row.aggregate === true, setReturning: row.set_returning === true }]),
    );
    const analysis = analyzeView(definition, lookup, storage, functions);
    const columns =
      analysis.probeSql === null
        ? []
        : (await client.query(analysis.probeSql)).fields.map((field) => ({
            typeOid: field.dataTypeID,
            typeModifier: field.dataTypeModifier,
          }));
    const plan = planView(analysis, { columns, groupsHashable: analysis.hashableSql.map(() => true), functions });
    const id = Number((await client.query("SELECT nextval('millrace.object_id') AS id")).rows[0]?.id);
    await client.query(`CREATE VIEW ${definitionView(id)} AS ${definition}`);
    for (const sql of storageDdl(plan, id, storage)) await client.query(sql);
    const list = visibleColumns(plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
    await client.query(gateSql(id, list, `${storageTable(id)} s`, 'pending'));
    await client.query(`CREATE VIEW public.${quoteIdentifier(name)} AS SELECT * FROM ${gateView(id)}`);
    await client.query(`INSERT INTO millrace.relation (id, kind, gate, facade) VALUES ($1, 'view', $2::regclass, $3::regclass)`, [
      id,
      gateView(id),
      `public.${quoteIdentifier(name)}`,
    ]);
    await client.query('INSERT INTO millrace.live_view (relation_id, definition, plan) VALUES ($1, $2::regclass, $3)', [
      id,
      definitionView(id),
      JSON.stringify(plan),
    ]);
    for (const input of analysis.inputs) await client.query('INSERT INTO millrace.live_view_input VALUES ($1, $2)', [id, input]);
    const mode = options.mode ?? 'DIFFERENTIAL';
    await client.query(
      'INSERT INTO millrace.stream_table (relation_id, query, schedule, requested_mode, refresh_mode) VALUES ($1, $2, $3, $4, $4)',
      [id, query, options.schedule === undefined ? 'calculated' : options.schedule, mode],
    );
    await client.query(`DROP VIEW ${scratch}; SELECT pg_notify('millrace', '')`);
    await client.query('COMMIT');
    return id;
  } catch (error) {
    await client.query('ROLLBACK');
    throw error;
  }
}

async function baseRelation(client: pg.Client, oid: string): Promise<number> {
  const known = await client.query('SELECT relation_id FROM millrace.base_table WHERE table_oid = $1', [oid]);
  if (known.rows[0] !== undefined) return Number(known.rows[0].relation_id);
  const made = await client.query(
    `WITH made AS (INSERT INTO millrace.relation (kind, gate) VALUES ('base', NULL) RETURNING id)
     INSERT INTO millrace.base_table (relation_id, table_oid, columns, key_attnums)
     SELECT made.id, $1::oid,
            (SELECT jsonb_agg(jsonb_build_object('attnum', a.attnum, 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'collation', NULL) ORDER BY a.attnum)
               FROM pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped),
            coalesce((SELECT i.indkey::int2[]::integer[] FROM pg_index i WHERE i.indrelid = $1::oid AND i.indisprimary), '{}')
       FROM made RETURNING relation_id`,
    [oid],
  );
  return Number(made.rows[0]?.relation_id);
}

/** Waits until the stream table can be read. */
export async function streamReady(client: pg.Client, id: number): Promise<void> {
  await until(async () => {
    const state = (await client.query('SELECT state, error FROM millrace.relation WHERE id = $1', [id])).rows[0];
    return state?.state === 'ready' ? null : `stream table ${id} is ${state?.state} ${JSON.stringify(state?.error)}`;
  });
}

/** Waits until `problem` answers null. */
async function until(problem: () => Promise<string | null>, timeout = 20_000): Promise<void> {
  for (const end = performance.now() + timeout; ; ) {
    const found = await problem();
    if (found === null) return;
    if (performance.now() > end) throw new Error(found);
    await sleep(20);
  }
}

export async function streamRow(client: pg.Client, id: number): Promise<Record<string, unknown>> {
  return (await client.query('SELECT * FROM millrace.stream_table WHERE relation_id = $1', [id])).rows[0] as Record<string, unknown>;
}

/** Asks for a refresh and waits for it. */
export async function refreshStream(client: pg.Client, id: number): Promise<void> {
  const asked = await client.query(
    'UPDATE millrace.stream_table SET refresh_requested = refresh_requested + 1 WHERE relation_id = $1 RETURNING refresh_requested',
    [id],
  );
  await client.query("NOTIFY millrace, ''");
  const wanted = Number(asked.rows[0]?.refresh_requested);
  await until(async () => {
    const done = Number((await streamRow(client, id))['refresh_done']);
    return done >= wanted ? null : `refresh ${wanted} of stream table ${id} is not done, ${done} is`;
  });
}

/** Rows of a query, sorted, as text. */
export async function sortedRows(client: pg.Client, sql: string): Promise<string[]> {
  return (await texts(client, sql)).map((row) => JSON.stringify(row)).sort();
}

/** Waits until the stream table shows what its query gives. */
export async function followsQuery(client: pg.Client, name: string, query: string, timeout = 15_000): Promise<void> {
  await until(async () => {
    const [shown, wanted] = [await sortedRows(client, `SELECT * FROM ${name}`), await sortedRows(client, query)];
    if (JSON.stringify(shown) === JSON.stringify(wanted)) return null;
    const only = (some: string[], others: string[]): string[] => some.filter((row) => !others.includes(row)).slice(0, 5);
    return `${name} shows ${only(shown, wanted)} in place of ${only(wanted, shown)}`;
  }, timeout);
}
