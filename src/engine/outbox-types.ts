/**
 * Outboxes follow the columns of their relations to wider types.
 * Invariant: at the end of an epoch an outbox of a table can hold what the table's storage holds, and sinks that read the table know its types: what
 * was written under the former ones is read under the new ones as well. Who reads the outbox in that moment is not waited for.
 */
import { storageColumn, storageTable } from '../catalog/model.ts';
import { outboxTable } from '../catalog/sink-model.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { type CatalogState, storageOf } from './context.ts';

/** Brings the outboxes of tables up to date, within an epoch in which storages may have got other types. Answers whether anything was to be done. */
export async function fitOutboxes(session: RawConnection, state: CatalogState): Promise<boolean> {
  const columns = [...state.outboxes].flatMap((relationId) => {
    const storage = storageTable(storageOf(state, relationId));
    return (state.tables.get(relationId)?.columns ?? []).map(
      ({ attnum }, index) => `(${relationId}, ${quoteLiteral(storage)}, ${quoteLiteral(storageColumn(attnum))}, 'v${index + 1}')`,
    );
  });
  if (columns.length === 0) return false;
  const [found] = await session.query(
    `SELECT x.relation, string_agg(format('ALTER COLUMN %I TYPE %s', o.attname, format_type(s.atttypid, s.atttypmod)), ', ' ORDER BY o.attnum)
       FROM (VALUES ${columns.join(', ')}) x(relation, storage, stored, place)
       JOIN pg_attribute s ON s.attrelid = to_regclass(x.storage) AND s.attname = x.stored
       JOIN pg_attribute o ON o.attrelid = to_regclass('millrace_data.o' || x.relation) AND o.attname = x.place
      WHERE (s.atttypid, s.atttypmod) IS DISTINCT FROM (o.atttypid, o.atttypmod)
      GROUP BY x.relation`,
  );
  for (const [relation, actions] of found?.rows ?? []) {
    const relationId = Number(relation);
    await alter(session, outboxTable(relationId), actions ?? '');
    await session.query(sinkTypes(relationId));
  }
  return (found?.rows.length ?? 0) > 0;
}

async function alter(session: RawConnection, table: string, actions: string): Promise<void> {
  const sql = `ALTER TABLE ${table} ${actions}`;
  await session.query('SAVEPOINT fit');
  try {
    await session.query("SET LOCAL lock_timeout = '1s'");
    await session.query(sql);
  } catch (error) {
    if (!(error instanceof PostgresError) || error.code !== '55P03') throw error;
    // A reader whose target, or client, takes nothing would hold back the epoch. It begins again where it was.
    await session.query('ROLLBACK TO SAVEPOINT fit');
    await session.query(
      `SELECT pg_terminate_backend(l.pid) FROM pg_locks l
        WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
          AND (l.relation = '${table}'::regclass OR l.relation IN (SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = '${table}'::regclass))
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())`,
    );
    await session.query("SET LOCAL lock_timeout = '5s'");
    await session.query(sql);
  }
  await session.query('RELEASE SAVEPOINT fit; SET LOCAL lock_timeout = 0');
}

/** Sinks that read the relation take the types of its outbox, place by place. */
export const sinkTypes = (relationId: number): string => `
UPDATE millrace.sink_version v
   SET columns = (SELECT jsonb_agg(c.value || millrace.type_shape(a.atttypid, a.atttypmod)
                                   || jsonb_build_object('type', format_type(a.atttypid, a.atttypmod), 'typeOid', a.atttypid::bigint) ORDER BY c.place)
                    FROM jsonb_array_elements(v.columns) WITH ORDINALITY c(value, place)
                    JOIN pg_attribute a ON a.attrelid = to_regclass('${outboxTable(relationId)}') AND a.attname = 'v' || c.place)
 WHERE v.relation_id = ${relationId} AND jsonb_array_length(v.columns) > 0`;
