/**
 * Brings the catalog of one database up to date. Invariant: migrations run in number order, each once, all in one transaction,
 * one process at a time; a catalog newer than this program is left alone.
 */
import { readdirSync, readFileSync } from 'node:fs';
import type { Client } from 'pg';
import { millraceError } from '../errors.ts';
import { serviceKey } from './encryption.ts';

interface Migration {
  readonly version: number;
  readonly sql: string;
}

const folder = new URL('./migrations/', import.meta.url);

function readMigrations(): Migration[] {
  return readdirSync(folder)
    .filter((file) => /^\d+_.*\.sql$/.test(file))
    .sort()
    .map((file) => ({ version: Number.parseInt(file, 10), sql: readFileSync(new URL(file, folder), 'utf8') }));
}

/** Advisory lock under which the catalog is installed and upgraded ("mill" in ASCII, then 1). */
const installLock = '1835625580, 1';

/** Whether the database of `client` has a catalog. */
export async function hasCatalog(client: Client): Promise<boolean> {
  const found = await client.query<{ there: boolean }>("SELECT to_regclass('millrace.catalog_version') IS NOT NULL AS there");
  return found.rows[0]?.there === true;
}

/**
 * Installs or upgrades the catalog over `client`, a connection of Millrace's own role.
 * Returns true when there was none before. Raises catalog_not_installable when the role may not create schemas.
 */
export async function ensureCatalog(client: Client, secretKey: string): Promise<boolean> {
  const migrations = readMigrations();
  await client.query('BEGIN');
  try {
    await client.query("SET LOCAL lock_timeout = '30s'");
    await client.query(`SELECT pg_advisory_xact_lock(${installLock})`);
    const existed = await hasCatalog(client);
    const reached = existed
      ? ((await client.query<{ version: number }>('SELECT max(version) AS version FROM millrace.catalog_version')).rows[0]?.version ?? 0)
      : 0;
    for (const migration of migrations) {
      if (migration.version <= reached) continue;
      if (!(await isSuperfluous(client, migration))) await client.query(migration.sql);
      await client.query('INSERT INTO millrace.catalog_version (version) VALUES ($1)', [migration.version]);
    }
    await client.query(
      'INSERT INTO millrace.service_key (key) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET key = excluded.key WHERE service_key.key <> excluded.key',
      [serviceKey(secretKey)],
    );
    await client.query('COMMIT');
    return !existed;
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    if (isCode(error, '42501')) {
      throw millraceError(
        'catalog_not_installable',
        {
          database: client.database ?? '',
          database_quoted: client.escapeIdentifier(client.database ?? ''),
          role_quoted: client.escapeIdentifier(client.user ?? ''),
          cause: error instanceof Error ? error.message : String(error),
        },
        { cause: error },
      );
    }
    throw error;
  }
}

/** A migration that begins with `-- skip if schema exists: x` gives way to somebody else's schema (the extension pg_trickle has pgtrickle). */
async function isSuperfluous(client: Client, migration: Migration): Promise<boolean> {
  const schema = /^-- skip if schema exists: (\w+)/.exec(migration.sql)?.[1];
  if (schema === undefined) return false;
  return (await client.query('SELECT 1 FROM pg_namespace WHERE nspname = $1', [schema])).rows.length > 0;
}

function isCode(error: unknown, code: string): boolean {
  return typeof error === 'object' && error !== null && 'code' in error && error.code === code;
}
