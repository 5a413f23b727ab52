/**
 * CREATE, ALTER, VALIDATE CONNECTION, and the address a stored connection leads to.
 * Invariant: a connection row never holds a secret's value, only its id.
 */
import {
  type ConnectionOptions,
  type KafkaAddress,
  openAddress,
  openKafkaAddress,
  openRegistryAddress,
  type RegistryAddress,
  type SealedSecrets,
} from '../catalog/connection-address.ts';
import type { ServerAddress } from '../config.ts';
import { millraceError } from '../errors.ts';
import type { AlterConnection, ConnectionTarget, CreateConnection, Option, QualifiedName, ValidateConnection } from '../sql/ast.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { requireComplete, requireKnownOption, requireSecretOption, shownTarget, storedType, targetOf } from './connection-options.ts';
import { type CallerRole, callerRole, perform, requireCatalog, type StatementContext } from './context.ts';
import { creationNamespace, findNamed, type NamedObject, requireNamed, requireOwner, shownName, undefinedObject } from './names.ts';
import { checkReachable } from './origin-checks.ts';
import { checkKafka, checkRegistry } from './sink-checks.ts';

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
  const { target } = statement;
  const options = await storedOptions(context, session, role, target, statement.options);
  requireComplete(target, options);
  await check(await targetAddress(context, session, { target, options }), shownName(statement.name), statement.validate);
  await perform(
    context,
    session,
    [
      `INSERT INTO millrace.connection (namespace, name, owner, type, options)
       VALUES (($1 ->> 'namespace')::oid, $1 ->> 'name', ($1 ->> 'owner')::oid, $1 ->> 'type', $1 -> 'options')`,
    ],
    { type: storedType(target), namespace: namespace.oid, name: statement.name.name, owner: role.oid, options },
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
  const { target, options: before } = await readConnection(context, session, found.id);
  const options: Record<string, ConnectionOptions[string]> = { ...before };
  const set = await storedOptions(context, session, role, target, statement.set);
  for (const name of statement.reset) {
    requireKnownOption(target, name);
    if (set[name] !== undefined) throw millraceError('invalid_option', { message: `cannot both SET and DROP/RESET option ${name}` });
    delete options[name];
  }
  // The other way to name brokers gives way.
  if (set['BROKER'] !== undefined) delete options['BROKERS'];
  if (set['BROKERS'] !== undefined) delete options['BROKER'];
  Object.assign(options, set);
  requireComplete(target, options);
  if (JSON.stringify(options['PROGRESS TOPIC']) !== JSON.stringify(before['PROGRESS TOPIC'])) {
    throw millraceError('invalid_option', {
      message: 'cannot ALTER KAFKA option PROGRESS TOPIC',
      detail: 'Sinks of the connection find in it how far they are.',
      hint: 'Create another connection.',
    });
  }
  await check(await targetAddress(context, session, { target, options }), shownName(statement.name), statement.validate);
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
  await check(await targetAddress(context, session, await readConnection(context, session, found.id)), shownName(statement.name), true);
  return { kind: 'done', tag: 'VALIDATE CONNECTION' };
}

interface StoredConnection {
  readonly target: ConnectionTarget;
  readonly options: ConnectionOptions;
}

type TargetAddress =
  | { readonly target: 'postgres'; readonly address: ServerAddress }
  | { readonly target: 'kafka'; readonly address: KafkaAddress }
  | { readonly target: 'confluent schema registry'; readonly address: RegistryAddress };

/** Tries an address unless WITH (VALIDATE = false) was given. */
async function check(to: TargetAddress, name: string, validate: boolean | null): Promise<void> {
  if (validate === false) return;
  switch (to.target) {
    case 'postgres':
      return await checkReachable(to.address, name);
    case 'kafka':
      return await checkKafka(to.address, name);
    case 'confluent schema registry':
      return await checkRegistry(to.address, name);
  }
}

/** Where a stored connection TO POSTGRES leads, secrets opened. Raises secret_unreadable when the key has changed. */
export async function connectionAddress(context: StatementContext, session: CallerSession, id: string): Promise<ServerAddress> {
  const { options } = await readConnection(context, session, id);
  return openAddress(context.secretKey, options, await sealedSecrets(context, session, options));
}

/** Where the registry behind a stored connection is, and what users call it. */
export async function registryOf(
  context: StatementContext,
  session: CallerSession,
  id: string,
): Promise<{ readonly name: string; readonly address: RegistryAddress }> {
  const { name, options } = await readConnection(context, session, id);
  return { name, address: openRegistryAddress(context.secretKey, options, await sealedSecrets(context, session, options)) };
}

/** A connection of one kind that the caller owns. */
export async function requireConnection(
  context: StatementContext,
  session: CallerSession,
  name: QualifiedName,
  role: CallerRole,
  target: ConnectionTarget,
): Promise<NamedObject> {
  const found = await requireNamed(context, session, 'connection', name, role);
  const { target: actual } = await readConnection(context, session, found.id);
  if (actual === target) return found;
  throw millraceError(
    'wrong_connection_type',
    { name: shownName(name), type: shownTarget(target), type_lower: storedType(target), actual: shownTarget(actual) },
    { position: name.at + 1 },
  );
}

async function readConnection(
  context: StatementContext,
  session: CallerSession,
  id: string,
): Promise<StoredConnection & { readonly name: string }> {
  const row = (await perform(
    context,
    session,
    ["SELECT jsonb_build_object('name', name, 'type', type, 'options', options) FROM millrace.connection WHERE id = ($1 ->> 'id')::bigint"],
    { id },
  )) as { name: string; type: string; options: ConnectionOptions };
  return { name: row.name, target: targetOf(row.type), options: row.options };
}

async function storedOptions(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  target: ConnectionTarget,
  options: readonly Option[],
): Promise<ConnectionOptions> {
  const stored: Record<string, ConnectionOptions[string]> = {};
  for (const option of options) {
    const position = { position: option.at + 1 };
    requireKnownOption(target, option.name, position);
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
      case 'list':
        if (option.name !== 'BROKERS') throw notAValue(option);
        stored[option.name] = { value: value.values.join(',') };
        break;
      case 'map':
      case 'expression':
        throw notAValue(option);
    }
    requireSecretOption(target, option.name, value.kind === 'secret', position);
  }
  return stored;
}

function notAValue({ name, value, at }: Option): Error {
  return millraceError('invalid_option', { message: `invalid ${name}: cannot use a ${value.kind} as its value` }, { position: at + 1 });
}

async function sealedSecrets(context: StatementContext, session: CallerSession, options: ConnectionOptions): Promise<SealedSecrets> {
  const ids = Object.values(options).flatMap((option) => ('secret' in option ? [option.secret] : []));
  if (ids.length === 0) return {};
  const found = await perform(
    context,
    session,
    [
      `SELECT jsonb_object_agg(s.id, jsonb_build_object('name', s.name, 'value', s.value))
         FROM millrace.secret s
        WHERE s.id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
    ],
    { ids },
  );
  return (found ?? {}) as SealedSecrets;
}

/** The address that options describe. Raises for a value that is none, whether or not the address is to be tried. */
async function targetAddress(
  context: StatementContext,
  session: CallerSession,
  { target, options }: StoredConnection,
): Promise<TargetAddress> {
  const sealed = await sealedSecrets(context, session, options);
  switch (target) {
    case 'postgres':
      return { target, address: openAddress(context.secretKey, options, sealed) };
    case 'kafka':
      return { target, address: openKafkaAddress(context.secretKey, options, sealed) };
    case 'confluent schema registry':
      return { target, address: openRegistryAddress(context.secretKey, options, sealed) };
  }
}
