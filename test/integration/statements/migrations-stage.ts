/** What tests of running migrations share: a stage, a schema's catalog as lines of text, and what a migration may not leave behind. */
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { type Stage, startStage, type TestClient } from './stage.ts';

export interface MigrationStage {
  readonly stage: Stage;
  /** Through Millrace; straight to the upstream; through Millrace as a role that owns nothing. */
  readonly client: TestClient;
  readonly upstream: TestClient;
  readonly clerk: TestClient;
  /** Columns of the last migration of a name. */
  state(name: string, columns?: string): Promise<unknown>;
  /** ALTER MIGRATION, step by step. */
  alter(name: string, ...steps: readonly string[]): Promise<void>;
  /** Both tables have the same rows, and always had. */
  clean(name: string): Promise<void>;
  /** The upstream is restarted; the answer has new sessions. */
  restarted(): Promise<MigrationStage>;
}

export async function startMigrationStage(version: 15 | 18): Promise<MigrationStage> {
  const stage = await startStage({ upstream: { version, settings: { wal_level: 'logical' } } });
  const upstream = await stage.direct(stage.upstream);
  await upstream.query("CREATE ROLE clerk LOGIN PASSWORD 'secret'");
  return await sessionsOf(stage, upstream);
}

async function sessionsOf(stage: Stage, upstream: TestClient): Promise<MigrationStage> {
  const client = await stage.connect();
  const state: MigrationStage['state'] = async (name, columns = 'phase, error') =>
    (await upstream.rows(`SELECT ${columns} FROM millrace.migrations WHERE name = '${name}' ORDER BY id DESC LIMIT 1`))[0];
  const alter: MigrationStage['alter'] = async (name, ...steps) => {
    for (const step of steps) await client.query(`ALTER MIGRATION ${name} ${step}`);
  };
  return {
    ...{ stage, client, upstream, clerk: await stage.connect('clerk'), state, alter },
    clean: async (name) => {
      await alter(name, 'VERIFY');
      expect(await state(name, 'error, differences, repaired')).toEqual([null, '0', '0']);
    },
    restarted: async () => {
      await stage.upstream.restart();
      return await sessionsOf(stage, await stage.direct(stage.upstream));
    },
  };
}

/** Everything the catalog says of a schema's relations by name, one fact a line, in order. Values of sequences are not in it. */
export async function factsOf(client: TestClient, schema: string): Promise<string[]> {
  const rows = await client.rows(
    `
WITH s AS (SELECT oid FROM pg_namespace WHERE nspname = $1),
     r AS (SELECT c.* FROM pg_class c, s WHERE c.relnamespace = s.oid)
SELECT line FROM (
SELECT format('%s %s of %s acl %s options %s toast %s identity %s: %s', CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE relkind::text END, relname, pg_get_userbyid(relowner),
              (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) a WHERE a::text NOT LIKE pg_get_userbyid(relowner) || '=%'), reloptions,
              (SELECT t.reloptions FROM pg_class t WHERE t.oid = r.reltoastrelid), relreplident, obj_description(oid, 'pg_class')) AS line FROM r
UNION ALL
SELECT format('column %s.%s %s%s default %s identity %s generated %s acl %s statistics %s options %s storage %s: %s', r.relname, a.attname, format_type(a.atttypid, a.atttypmod),
              CASE WHEN a.attnotnull THEN ' not null' END, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attacl, nullif(a.attstattarget, -1), a.attoptions, a.attstorage, col_description(r.oid, a.attnum))
  FROM r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum WHERE r.relkind IN ('r', 'v', 'p')
UNION ALL
SELECT format('%s valid %s clustered %s replident %s: %s', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisclustered, i.indisreplident, obj_description(i.indexrelid, 'pg_class'))
  FROM pg_index i JOIN r ON r.oid = i.indexrelid
UNION ALL
SELECT format('constraint %s of %s %s validated %s: %s', k.conname, r.relname, pg_get_constraintdef(k.oid), k.convalidated, obj_description(k.oid, 'pg_constraint')) FROM pg_constraint k JOIN r ON r.oid = k.conrelid
UNION ALL
SELECT format('%s enabled %s: %s', pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger')) FROM pg_trigger t JOIN r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
UNION ALL
SELECT format('sequence %s %s %s..%s by %s belongs to %s', r.relname, format_type(q.seqtypid, NULL), q.seqmin, q.seqmax, q.seqincrement,
              (SELECT string_agg(d.refobjid::regclass || '.' || a.attname || ' ' || d.deptype::text, ',') FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype IN ('a', 'i')))
  FROM pg_sequence q JOIN r ON r.oid = q.seqrelid
UNION ALL
SELECT format('publication %s %s %s %s', pubname, tablename, attnames, rowfilter) FROM pg_publication_tables WHERE schemaname = $1 AND pubname !~ '^millrace'
UNION ALL
SELECT format('%s target %s: %s', pg_get_statisticsobjdef(x.oid), nullif(x.stxstattarget, -1), obj_description(x.oid, 'pg_statistic_ext')) FROM pg_statistic_ext x, s WHERE x.stxnamespace = s.oid
UNION ALL
SELECT format('view %s: %s', r.relname, pg_get_viewdef(r.oid)) FROM r WHERE relkind = 'v'
) x ORDER BY line COLLATE "C"`,
    [schema],
  );
  return rows.map(([line]) => String(line));
}

/** Facts that are new, and facts that are no more. */
export function changesOf(before: readonly string[], after: readonly string[]): { readonly gone: string[]; readonly come: string[] } {
  return { gone: before.filter((line) => !after.includes(line)), come: after.filter((line) => !before.includes(line)) };
}

/** Names of all that a migration makes beside the user's tables. Empty, when none is under way. A slot goes after the commit that ends its migration. */
export async function leftBehind(client: TestClient): Promise<unknown[][]> {
  for (const end = Date.now() + 20_000; ; await sleep(50)) {
    const found = await client.rows(leftBehindSql);
    if (found.every(([kind]) => kind !== 'slot') || Date.now() > end) return found;
  }
}

const leftBehindSql = `
SELECT 'relation', c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'millrace' AND (c.relname ~ '^m[0-9]+(_|$)' OR c.relname ~ '_m[0-9]+$' OR n.nspname = 'millrace_data' AND c.relname !~ '^(d[0-9]|epoch|s0(_|$))')
UNION ALL SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE proname ~ '^m[0-9]+_'
UNION ALL SELECT 'statistics', stxname::text FROM pg_statistic_ext WHERE stxname ~ '^m[0-9]+' OR stxnamespace = 'millrace_data'::regnamespace
UNION ALL SELECT 'schema', nspname::text FROM pg_namespace WHERE nspname ~ '_(old|new)$'
UNION ALL SELECT 'publication', pubname::text FROM pg_publication WHERE pubname ~ '^millrace_migration'
UNION ALL SELECT 'constraint', conname || ' of ' || conrelid::regclass FROM pg_constraint WHERE conname ~ '^m[0-9]+_'
UNION ALL SELECT 'type', typname::text FROM pg_type WHERE typname ~ '^_?m[0-9]+(_|$)'
UNION ALL SELECT 'slot', slot_name::text FROM pg_replication_slots WHERE slot_name ~ '^millrace_migration'`;

/** A query's rows are these (a VALUES list), each as often as there. Postgres compares them. */
export async function expectRows(client: TestClient, query: string, values: string): Promise<void> {
  const different = await client.rows(
    `WITH found AS (${query}), wanted AS (VALUES ${values})
     SELECT 'missing', x::text FROM (SELECT * FROM wanted EXCEPT ALL SELECT * FROM found) x
     UNION ALL SELECT 'not wanted', x::text FROM (SELECT * FROM found EXCEPT ALL SELECT * FROM wanted) x`,
  );
  expect(different).toEqual([]);
}
