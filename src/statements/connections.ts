/**
 * CREATE, ALTER, VALIDATE CONNECTION TO POSTGRES, and the address a stored connection leads to.
 * Invariant: a connection row never holds a secret's value, only its id.
 */
import { type ConnectionOptions, openAddress, type SealedSecrets } from '../catalog/connection-address.ts';
import type { ServerAddress } from '../config.ts';
import { millraceError } from '../errors.ts';
import type { AlterConnection, CreateConnection, Option, ValidateConnection } from '../sql/ast.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { type CallerRole, callerRole, perform, requireCatalog, type StatementContext } from './context.ts';
import { creationNamespace, findNamed, requireNamed, requireOwner, shownName, undefinedObject } from './names.ts';
import { checkReachable } from './origin-checks.ts';

const knownOptions = [
  'HOST',
  'PORT',
  'USER',
  'PASSWORD',
  'DATABASE',
  'SSL MODE',
  'SSL CERTIFICATE AUTHORITY',
  'SSL CERTIFICATE',
  'SSL KEY',
] as const;

export async function createConnection(
  context: StatementContext,
  session: CallerSession,
  statement: CreateConnection,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const namespace = await creationNamespace(session, statement.name);
  const existing = await findNamed(context, session, 'connection', { ...statement.name, schema: namespace.name });
  if (existing !== null) {
    if (!statement.ifNotExists)
      throw millraceError('duplicate_object', { kind: 'connection', name: statement.name.name }, { position: statement.name.at + 1 });
    session.notice({ severity: 'NOTICE', code: '42710', message: `connection "${statement.name.name}" already exists, skipping` });
    return { kind: 'done', tag: 'CREATE CONNECTION' };
  }
  const options = await storedOptions(context, session, role, statement.options);
  requireComplete(options);
  if (statement.validate !== false) {
    await checkReachable(await addressOf(context, session, options), shownName(statement.name));
  }
  await perform(
    context,
    session,
    [
      `INSERT INTO millrace.connection (namespace, name, owner, type, options)
       VALUES (($1 ->> 'namespace')::oid, $1 ->> 'name', ($1 ->> 'owner')::oid, 'postgres', $1 -> 'options')`,
    ],
    { namespace: namespace.oid, name: statement.name.name, owner: role.oid, options },
  );
  return { kind: 'done', tag: 'CREATE CONNECTION' };
}

export async function alterConnection(
  context: StatementContext,
  session: CallerSession,
  statement: AlterConnection,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const found = await findNamed(context, session, 'connection', statement.name);
  if (found === null) {
    if (!statement.ifExists) throw undefinedObject('connection', statement.name);
    session.notice({ severity: 'NOTICE', code: '42704', message: `connection "${shownName(statement.name)}" does not exist, skipping` });
    return { kind: 'done', tag: 'ALTER CONNECTION' };
  }
  await requireOwner(session, 'connection', shownName(statement.name), found.owner, role);
  const options: Record<string, ConnectionOptions[string]> = { ...(await readOptions(context, session, found.id)) };
  for (const name of statement.reset) {
    requireKnown(name);
    delete options[name];
  }
  Object.assign(options, await storedOptions(context, session, role, statement.set));
  requireComplete(options);
  if (statement.validate !== false) {
    await checkReachable(await addressOf(context, session, options), shownName(statement.name));
  }
  await perform(context, session, ["UPDATE millrace.connection SET options = $1 -> 'options' WHERE id = ($1 ->> 'id')::bigint"], {
    id: found.id,
    options,
  });
  return { kind: 'done', tag: 'ALTER CONNECTION' };
}

export async function validateConnection(
  context: StatementContext,
  session: CallerSession,
  statement: ValidateConnection,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const found = await requireNamed(context, session, 'connection', statement.name, await callerRole(session));
  await checkReachable(await connectionAddress(context, session, found.id), shownName(statement.name));
  return { kind: 'done', tag: 'VALIDATE CONNECTION' };
}

/** Where a stored connection leads, secrets opened. Raises secret_unreadable when the key has changed. */
export async function connectionAddress(context: StatementContext, session: CallerSession, id: string): Promise<ServerAddress> {
  return addressOf(context, session, await readOptions(context, session, id));
}

async function readOptions(context: StatementContext, session: CallerSession, id: string): Promise<ConnectionOptions> {
  return (await perform(context, session, ["SELECT options FROM millrace.connection WHERE id = ($1 ->> 'id')::bigint"], {
    id,
  })) as ConnectionOptions;
}

async function storedOptions(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  options: readonly Option[],
): Promise<ConnectionOptions> {
  const stored: Record<string, ConnectionOptions[string]> = {};
  for (const option of options) {
    const position = { position: option.at + 1 };
    requireKnown(option.name, position);
    if (stored[option.name] !== undefined) {
      throw millraceError('invalid_option', { message: `${option.name} specified more than once` }, position);
    }
    const { value } = option;
    switch (value.kind) {
      case 'secret': {
        const secret = await requireNamed(context, session, 'secret', value.name, role);
        stored[option.name] = { secret: secret.id };
        break;
      }
      case 'identifier':
        stored[option.name] = { value: value.name.name };
        break;
      case 'string':
      case 'number':
      case 'boolean':
        stored[option.name] = { value: String(value.value) };
        break;
    }
    if (option.name === 'PASSWORD' && value.kind !== 'secret') {
      throw millraceError(
        'invalid_option',
        {
          message: 'PASSWORD must be a secret',
          hint: "Type: CREATE SECRET my_password AS '...'; and then PASSWORD SECRET my_password.",
        },
        position,
      );
    }
  }
  return stored;
}

function requireKnown(name: string, position: { readonly position?: number } = {}): void {
  if (knownOptions.some((known) => known === name)) return;
  throw millraceError(
    'invalid_option',
    { message: `POSTGRES connections do not support ${name} values`, hint: `The options are: ${knownOptions.join(', ')}.` },
    position,
  );
}

function requireComplete(options: ConnectionOptions): void {
  for (const name of ['HOST', 'DATABASE', 'USER']) {
    if (options[name] === undefined) {
      throw millraceError('invalid_option', { message: `${name} option is required`, hint: `Add ${name} '...' to the list.` });
    }
  }
  if ((options['SSL KEY'] === undefined) !== (options['SSL CERTIFICATE'] === undefined)) {
    throw millraceError('invalid_option', { message: 'invalid CONNECTION: both SSL KEY and SSL CERTIFICATE are required' });
  }
}

async function addressOf(context: StatementContext, session: CallerSession, options: ConnectionOptions): Promise<ServerAddress> {
  const ids = Object.values(options).flatMap((option) => ('secret' in option ? [option.secret] : []));
  const sealed =
    ids.length === 0
      ? {}
      : ((await perform(
          context,
          session,
          [
            `SELECT jsonb_object_agg(s.id, jsonb_build_object('name', s.name, 'value', s.value))
               FROM millrace.secret s
              WHERE s.id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
          ],
          { ids },
        )) as SealedSecrets);
  return openAddress(context.secretKey, options, sealed);
}
