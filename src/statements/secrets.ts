/** CREATE, ALTER SECRET. Invariant: the value leaves this process encrypted only. */
import { encryptSecret } from '../catalog/encryption.ts';
import { millraceError } from '../errors.ts';
import type { AlterSecret, CreateSecret } from '../sql/ast.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { callerRole, perform, requireCatalog, type StatementContext } from './context.ts';
import { creationNamespace, findNamed, requireOwner, shownName, undefinedObject } from './names.ts';

export async function createSecret(context: StatementContext, session: CallerSession, statement: CreateSecret): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const namespace = await creationNamespace(session, statement.name);
  const existing = await findNamed(context, session, 'secret', { ...statement.name, schema: namespace.name });
  if (existing !== null) {
    if (!statement.ifNotExists)
      throw millraceError('duplicate_object', { kind: 'secret', name: statement.name.name }, { position: statement.name.at + 1 });
    session.notice({ severity: 'NOTICE', code: '42710', message: `secret "${statement.name.name}" already exists, skipping` });
    return { kind: 'done', tag: 'CREATE SECRET' };
  }
  const id = String(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  await perform(
    context,
    session,
    [
      `INSERT INTO millrace.secret (id, namespace, name, owner, value)
       VALUES (($1 ->> 'id')::bigint, ($1 ->> 'namespace')::oid, $1 ->> 'name', ($1 ->> 'owner')::oid, $1 ->> 'value')`,
    ],
    {
      id,
      namespace: namespace.oid,
      name: statement.name.name,
      owner: role.oid,
      value: encryptSecret(context.secretKey, id, statement.value),
    },
  );
  return { kind: 'done', tag: 'CREATE SECRET' };
}

/** A running source goes on with the old value until its connection is next opened; the engine reopens it when the catalog changes. */
export async function alterSecret(context: StatementContext, session: CallerSession, statement: AlterSecret): Promise<StatementResult> {
  await requireCatalog(context, session);
  const found = await findNamed(context, session, 'secret', statement.name);
  if (found === null) {
    if (!statement.ifExists) throw undefinedObject('secret', statement.name);
    session.notice({ severity: 'NOTICE', code: '42704', message: `secret "${shownName(statement.name)}" does not exist, skipping` });
    return { kind: 'done', tag: 'ALTER SECRET' };
  }
  await requireOwner(session, 'secret', shownName(statement.name), found.owner, await callerRole(session));
  await perform(context, session, ["UPDATE millrace.secret SET value = $1 ->> 'value' WHERE id = ($1 ->> 'id')::bigint"], {
    id: found.id,
    value: encryptSecret(context.secretKey, found.id, statement.value),
  });
  return { kind: 'done', tag: 'ALTER SECRET' };
}
