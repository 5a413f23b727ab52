/** Databases for one file of tests. */
import pg from 'pg';
import { type Place, role, target } from './place.ts';

/** New, empty databases that belong to the clients' role. */
export async function createDatabases(place: Place, names: readonly string[]): Promise<void> {
  const client = new pg.Client({ connectionString: target(place, 'postgres', false).ownerUrl });
  await client.connect();
  for (const name of names) await client.query(`CREATE DATABASE ${client.escapeIdentifier(name)} OWNER ${role.user}`);
  await client.end();
}
