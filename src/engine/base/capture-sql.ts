/**
 * Bringing a base table under capture, and letting it go.
 * Invariant: a table joins the publication while no transaction that has written to it is open, so every transaction is in the stream
 * with all of its changes of the table or with none; those with none have ended before the lock was had, and any later snapshot sees them.
 */
import type { Client } from 'pg';
import { type BaseTable, changeLogTable, deltaTable, type RelationError, storageColumn, triggerTable } from '../../catalog/model.ts';
import { quoteIdentifier } from '../../sql/quote.ts';
import { createDelta } from './delta-ddl.ts';

/**
 * Writers of the table are kept waiting behind the lock for so long at most. Shorter than deadlock_timeout, so that of Millrace and a user who makes
 * a stream table over it, and so has locked the list of tables, it is never the user who gets 40P01.
 */
const lockTimeout = '500ms';

/** A table that cannot be captured, as the error of what reads it. */
export class CaptureRefusedError extends Error {
  readonly relationError: RelationError;
  constructor(error: RelationError) {
    super(error.message);
    this.relationError = error;
  }
}

interface Member {
  readonly name: string;
  readonly identity: string;
  readonly index: string | null;
  readonly isRoot: boolean;
}

/** `wanted`: columns that are captured, by attnum. Answers whether its REPLICA IDENTITY was changed. Errors of locks (55P03) mean: again later. */
export async function addTable(
  client: Client,
  method: BaseTable['method'],
  publication: string,
  { id: baseId, tableOid }: Pick<BaseTable, 'id' | 'tableOid'>,
  wanted: ReadonlySet<number>,
): Promise<boolean> {
  const described = await client.query<{
    name: string;
    relkind: string;
    relpersistence: string;
    children: boolean;
    hasKey: boolean;
    virtual: string | null;
  }>(
    `SELECT millrace.qualified_name(c.oid) AS name, c.relkind, c.relpersistence,
            EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS "hasKey",
            (SELECT min(a.attname) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped) AS virtual,
            c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) AS children
       FROM pg_catalog.pg_class c WHERE c.oid = $1`,
    [tableOid],
  );
  const [table] = described.rows;
  if (table === undefined)
    throw refused('42P01', 'a table it reads was dropped', 'Create the stream table again with a query that can be run.');
  const { name } = table;
  if (table.relkind !== 'r' && table.relkind !== 'p') {
    throw refused('0A000', `changes of ${name} cannot be captured: it is not a table`, "Use refresh_mode => 'FULL'.");
  }
  if (table.relpersistence !== 'p') {
    throw refused(
      '0A000',
      `changes of ${name} cannot be captured: it is ${table.relpersistence === 'u' ? 'unlogged' : 'temporary'}`,
      `Use refresh_mode => 'FULL', or ALTER TABLE ${name} SET LOGGED;`,
    );
  }
  if (table.children) {
    throw refused('0A000', `changes of ${name} cannot be captured: other tables inherit from it`, "Use refresh_mode => 'FULL'.");
  }
  if (method === 'trigger') {
    if (table.relkind === 'p') {
      throw refused(
        '0A000',
        `changes of ${name} cannot be captured: it is partitioned, and this server does not stream`,
        "ALTER SYSTEM SET wal_level = 'logical'; restart the server, and give Millrace's role REPLICATION; or use refresh_mode => 'FULL'.",
      );
    }
    await addTriggers(client, name, { id: baseId, tableOid }, wanted);
    return false;
  }
  // With either, Postgres would refuse the user's own UPDATEs: of partitions still to come, and of every row.
  if (table.relkind === 'p' && !table.hasKey) {
    throw refused(
      '0A000',
      `changes of ${name} cannot be captured: it is partitioned and has no primary key`,
      `ALTER TABLE ${name} ADD PRIMARY KEY (...); or use refresh_mode => 'FULL'.`,
    );
  }
  if (table.virtual !== null) {
    throw refused(
      '0A000',
      `changes of ${name} cannot be captured: its column "${table.virtual}" is a virtual generated column`,
      "Make it STORED, or use refresh_mode => 'FULL'.",
    );
  }
  await client.query(`BEGIN; SET LOCAL lock_timeout = '${lockTimeout}'`);
  try {
    const members = await membersOf(client, tableOid);
    for (const member of members) {
      await client.query(
        member.identity === 'f'
          ? `LOCK TABLE ONLY ${member.name} IN SHARE ROW EXCLUSIVE MODE`
          : `ALTER TABLE ONLY ${member.name} REPLICA IDENTITY FULL`,
      );
    }
    const changed = members.find((member) => member.identity !== 'f');
    const published = await client.query(
      `SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1 AND r.prrelid = $2`,
      [publication, tableOid],
    );
    if (published.rowCount === 0) await client.query(`ALTER PUBLICATION ${quoteIdentifier(publication)} ADD TABLE ${name}`);
    await createDelta(client, { id: baseId, tableOid }, wanted);
    await client.query(
      `UPDATE millrace.base_table
          SET state = 'captured', error = NULL, identity_before = coalesce(identity_before, $2::"char"), identity_index = coalesce(identity_index, $3::oid)
        WHERE relation_id = $1`,
      [baseId, changed?.identity ?? null, changed?.index ?? null],
    );
    await client.query("SELECT pg_notify('millrace', '')");
    await client.query('COMMIT');
    return changed !== undefined;
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    if (code !== '42501' || !(error instanceof Error)) throw error;
    throw refused(
      '42501',
      `changes of ${name} cannot be captured: ${error.message}`,
      `Its owner, or a superuser, may type: ALTER TABLE ${name} OWNER TO ${quoteIdentifier(client.user ?? '')}; or use refresh_mode => 'FULL'.`,
    );
  }
}

const events = [
  { event: 'INSERT', referencing: 'AFTER INSERT', tables: 'REFERENCING NEW TABLE AS new_rows' },
  { event: 'UPDATE', referencing: 'AFTER UPDATE', tables: 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows' },
  { event: 'DELETE', referencing: 'AFTER DELETE', tables: 'REFERENCING OLD TABLE AS old_rows' },
  { event: 'TRUNCATE', referencing: 'AFTER TRUNCATE', tables: '' },
] as const;
const triggerName = (event: string): string => `millrace_base_${event.toLowerCase()}`;

/** Triggers in place of the stream. CREATE TRIGGER waits for the table's writers, as joining the publication does. */
async function addTriggers(
  client: Client,
  name: string,
  { id: baseId, tableOid }: Pick<BaseTable, 'id' | 'tableOid'>,
  wanted: ReadonlySet<number>,
): Promise<void> {
  await client.query(`BEGIN; SET LOCAL lock_timeout = '${lockTimeout}'`);
  try {
    await createDelta(client, { id: baseId, tableOid }, wanted);
    await client.query(`DROP TABLE IF EXISTS ${triggerTable(baseId)}`);
    const columns = await client.query<{ attnum: number }>(
      'SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum',
      [tableOid],
    );
    const list = columns.rows.map(({ attnum }) => `, ${storageColumn(attnum)} text`).join('');
    await client.query(`CREATE TABLE ${triggerTable(baseId)} (w smallint NOT NULL${list})`);
    for (const { event, referencing, tables } of events) {
      const trigger = triggerName(event);
      await client.query(`DROP TRIGGER IF EXISTS ${trigger} ON ${name}`);
      await client.query(
        `CREATE TRIGGER ${trigger} ${referencing} ON ${name} ${tables} FOR EACH STATEMENT EXECUTE FUNCTION millrace.base_changed('${baseId}')`,
      );
      await client.query(`ALTER TABLE ${name} ENABLE ALWAYS TRIGGER ${trigger}`);
    }
    await client.query("UPDATE millrace.base_table SET state = 'captured', method = 'trigger', error = NULL WHERE relation_id = $1", [
      baseId,
    ]);
    await client.query("SELECT pg_notify('millrace', '')");
    await client.query('COMMIT');
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    if (code !== '42501' || !(error instanceof Error)) throw error;
    throw refused(
      '42501',
      `changes of ${name} cannot be captured: ${error.message}`,
      `Its owner may type: GRANT TRIGGER ON ${name} TO ${quoteIdentifier(client.user ?? '')}; or use refresh_mode => 'FULL'.`,
    );
  }
}

/** Partitions that came later get the identity of the rest. */
export async function identifyPartitions(client: Client, tableOid: number): Promise<void> {
  for (const member of await membersOf(client, tableOid)) {
    if (member.identity === 'f') continue;
    await client.query(`BEGIN; SET LOCAL lock_timeout = '${lockTimeout}'; ALTER TABLE ONLY ${member.name} REPLICA IDENTITY FULL; COMMIT`);
  }
}

/** The table with its partitions. */
async function membersOf(client: Client, tableOid: number): Promise<readonly Member[]> {
  const found = await client.query<Member>(
    `SELECT millrace.qualified_name(c.oid) AS name, c.relreplident::text AS identity, c.oid = $1 AS "isRoot",
            (SELECT i.indexrelid::text FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) AS index
       FROM pg_catalog.pg_class c
      WHERE c.oid = $1 OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid::regclass)) AND c.relkind IN ('r', 'p')
      ORDER BY c.oid <> $1, c.oid`,
    [tableOid],
  );
  return found.rows;
}

/** The table leaves the publication; its former replica identity is put back where Millrace had changed it. Answers what was put back. */
export async function removeTable(
  client: Client,
  publication: string,
  base: Pick<BaseTable, 'id' | 'tableOid' | 'identityBefore' | 'method'>,
): Promise<void> {
  await client.query(`BEGIN; SET LOCAL lock_timeout = '${lockTimeout}'`);
  try {
    const published = await client.query<{ name: string }>(
      `SELECT millrace.qualified_name(r.prrelid) AS name
         FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1 AND r.prrelid = $2`,
      [publication, base.tableOid],
    );
    const [table] = published.rows;
    if (table !== undefined) await client.query(`ALTER PUBLICATION ${quoteIdentifier(publication)} DROP TABLE ${table.name}`);
    if (base.identityBefore !== null) {
      for (const member of await membersOf(client, base.tableOid)) {
        if (member.identity !== 'f') continue;
        const identity = await formerIdentity(client, base.id, base.identityBefore, member);
        await client.query(`ALTER TABLE ONLY ${member.name} REPLICA IDENTITY ${identity}`);
      }
    }
    const there = await client.query<{ name: string | null }>('SELECT millrace.qualified_name($1) AS name', [base.tableOid]);
    const name = there.rows[0]?.name ?? null;
    if (base.method === 'trigger' && name !== null) {
      for (const { event } of events) await client.query(`DROP TRIGGER IF EXISTS ${triggerName(event)} ON ${name}`);
    }
    await client.query(`DROP TABLE IF EXISTS ${deltaTable(base.id)}, ${triggerTable(base.id)}, ${changeLogTable(base.id)}`);
    await client.query(
      "UPDATE millrace.base_table SET state = 'new', method = 'wal', error = NULL, identity_before = NULL, identity_index = NULL WHERE relation_id = $1",
      [base.id],
    );
    await client.query('COMMIT');
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}

/**
 * Takes a table that nobody reads out of the catalog. The lock is that of the statements that register tables: they see it gone, or this sees
 * that it is read again. False: to be tried again later.
 */
export async function forgetTable(client: Client, baseId: number): Promise<boolean> {
  await client.query(`BEGIN; SET LOCAL lock_timeout = '${lockTimeout}'`);
  try {
    await client.query('LOCK TABLE millrace.base_table IN SHARE ROW EXCLUSIVE MODE');
    const gone = await client.query(
      `DELETE FROM millrace.relation r WHERE r.id = $1 AND NOT EXISTS (SELECT FROM millrace.live_view_input i WHERE i.input_id = r.id)
         AND NOT EXISTS (SELECT FROM millrace.base_table b WHERE b.relation_id = r.id AND b.state = 'captured')`,
      [baseId],
    );
    await client.query('COMMIT');
    return gone.rowCount !== 0;
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    if (error instanceof Error && 'code' in error && error.code === '55P03') return false;
    throw error;
  }
}

async function formerIdentity(client: Client, baseId: number, before: string, member: Member): Promise<string> {
  if (before === 'n') return 'NOTHING';
  if (before !== 'i' || !member.isRoot) return 'DEFAULT';
  const found = await client.query<{ name: string }>(
    'SELECT c.relname AS name FROM millrace.base_table b JOIN pg_catalog.pg_class c ON c.oid = b.identity_index WHERE b.relation_id = $1',
    [baseId],
  );
  const [index] = found.rows;
  return index === undefined ? 'DEFAULT' : `USING INDEX ${quoteIdentifier(index.name)}`;
}

function refused(code: string, message: string, hint: string): CaptureRefusedError {
  return new CaptureRefusedError({ code, message, hint });
}
