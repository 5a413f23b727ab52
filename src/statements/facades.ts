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
async function namespaceHolds(session: CallerSession, namespaceOid: string, name: string): Promise<boolean> {
  const row = await firstRow(session, 'SELECT 1 FROM pg_catalog.pg_class WHERE relnamespace = $1::oid AND relname = $2', [
    namespaceOid,
    name,
  ]);
  return row !== null;
}

function duplicateRelation(name: QualifiedName): MillraceError {
  return millraceError('duplicate_relation', { name: name.name }, { position: name.at + 1 });
}

/** Whether a CREATE has nothing to do because the name is there: said as a NOTICE with IF NOT EXISTS, raised as duplicate_relation without. */
export async function nameTaken(
  session: CallerSession,
  namespaceOid: string,
  statement: { readonly name: QualifiedName; readonly ifNotExists: boolean },
): Promise<boolean> {
  const { name, ifNotExists } = statement;
  if (!(await namespaceHolds(session, namespaceOid, name.name))) return false;
  if (!ifNotExists) throw duplicateRelation(name);
  session.notice({ severity: 'NOTICE', code: '42P07', message: `relation "${name.name}" already exists, skipping` });
  return true;
}
