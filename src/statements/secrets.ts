/** CREATE, ALTER, DROP SECRET. Invariant: the value leaves this process encrypted only. */
import { encryptSecret } from '../catalog/encryption.ts';
import { millraceError } from '../errors.ts';
import type { AlterSecret, CreateSecret, QualifiedName } from '../sql/ast.ts';
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

/** Drops secrets or connections; refuses while something uses them, since a source without its connection would stand still. */
export async function dropNamed(
  context: StatementContext,
  session: CallerSession,
  kind: 'secret' | 'connection',
  names: readonly QualifiedName[],
  options: { readonly ifExists: boolean; readonly cascade: boolean; readonly dropSources: (ids: readonly string[]) => Promise<void> },
): Promise<StatementResult> {
  const tag = `DROP ${kind.toUpperCase()}`;
  await requireCatalog(context, session);
  const role = await callerRole(session);
  for (const name of names) {
    const found = await findNamed(context, session, kind, name);
    if (found === null) {
      if (!options.ifExists) throw undefinedObject(kind, name);
      session.notice({ severity: 'NOTICE', code: '42704', message: `${kind} "${shownName(name)}" does not exist, skipping` });
      continue;
    }
    await requireOwner(session, kind, shownName(name), found.owner, role);
    const connections = kind === 'connection' ? [found.id] : await connectionsUsing(context, session, found.id);
    const sources = await sourcesUsing(context, session, connections);
    const dependents = [
      ...(kind === 'secret' ? connections.map((id) => `connection ${id}`) : []),
      ...sources.map((source) => `source ${source.name} depends on ${kind} ${shownName(name)}`),
    ];
    if (dependents.length > 0 && !options.cascade) {
      throw millraceError('dependent_objects', { kind, name: shownName(name), dependents: dependents.join('\n') });
    }
    await options.dropSources(sources.map((source) => source.id));
    if (kind === 'secret' && connections.length > 0) await removeRows(context, session, 'connection', connections);
    await removeRows(context, session, kind, [found.id]);
  }
  return { kind: 'done', tag };
}

async function removeRows(
  context: StatementContext,
  session: CallerSession,
  kind: 'secret' | 'connection',
  ids: readonly string[],
): Promise<void> {
  await perform(
    context,
    session,
    [`DELETE FROM millrace.${kind} WHERE id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`],
    { ids },
  );
}

async function connectionsUsing(context: StatementContext, session: CallerSession, secretId: string): Promise<string[]> {
  return (await perform(
    context,
    session,
    [
      `SELECT coalesce(jsonb_agg(DISTINCT c.id::text), '[]')
         FROM millrace.connection c, jsonb_each(c.options) AS o
        WHERE o.value ->> 'secret' = $1 ->> 'id'`,
    ],
    { id: secretId },
  )) as string[];
}

async function sourcesUsing(
  context: StatementContext,
  session: CallerSession,
  connectionIds: readonly string[],
): Promise<{ id: string; name: string }[]> {
  return (await perform(
    context,
    session,
    [
      `SELECT coalesce(jsonb_agg(jsonb_build_object('id', s.id::text, 'name', millrace.qualified_name(s.facade))), '[]')
         FROM millrace.source s
        WHERE s.status <> 'dropped' AND s.connection_id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
    ],
    { ids: connectionIds },
  )) as { id: string; name: string }[];
}
