/** Facades: the views that users see. Invariant: a facade belongs to the role that created it and refuses every write. */
import { type MillraceError, millraceError } from '../errors.ts';
import type { QualifiedName } from '../sql/ast.ts';
import type { CallerSession } from './caller-session.ts';
import { firstRow } from './context.ts';

/** Refuses writes, also those that touch no row. `facade` is a quoted, qualified name. */
export async function facadeTriggers(session: CallerSession, facade: string): Promise<void> {
  await session.query(
    `CREATE TRIGGER millrace_refuse_rows INSTEAD OF INSERT OR UPDATE OR DELETE ON ${facade}
     FOR EACH ROW EXECUTE FUNCTION millrace.refuse_write()`,
    [],
    { quiet: true },
  );
  await session.query(
    `CREATE TRIGGER millrace_refuse_statement BEFORE INSERT OR UPDATE OR DELETE ON ${facade}
     FOR EACH STATEMENT EXECUTE FUNCTION millrace.refuse_write()`,
    [],
    { quiet: true },
  );
}

/** Whether a schema already has a relation of this name (tables, views, indexes and types share it). */
export async function namespaceHolds(session: CallerSession, namespaceOid: string, name: string): Promise<boolean> {
  const row = await firstRow(session, 'SELECT 1 FROM pg_catalog.pg_class WHERE relnamespace = $1::oid AND relname = $2', [
    namespaceOid,
    name,
  ]);
  return row !== null;
}

export function duplicateRelation(name: QualifiedName): MillraceError {
  return millraceError('duplicate_relation', { name: name.name }, { position: name.at + 1 });
}
