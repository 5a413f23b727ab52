/**
 * CREATE, ALTER SOURCE.
 * Invariant: the slot is the engine's to create, after the commit, so that a rolled back CREATE SOURCE leaves nothing on the origin.
 */
import { randomBytes } from 'node:crypto';
import { gateView } from '../catalog/model.ts';
import { millraceError } from '../errors.ts';
import type { AlterSource, CreateSource, QualifiedName } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { connectionAddress, requireConnection } from './connections.ts';
import { callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { facadeTriggers, nameTaken } from './facades.ts';
import { creationNamespace, findLive, relationExists, requireOwner, shownName, undefinedObject } from './names.ts';
import { checkSource } from './origin-checks.ts';
import { dropSources } from './removal.ts';
import { awaitReady, awaitResync, waitsForEngine } from './wait.ts';

export async function createSource(context: StatementContext, session: CallerSession, statement: CreateSource): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const namespace = await creationNamespace(session, statement.name);
  if (await nameTaken(session, namespace.oid, statement)) return { kind: 'done', tag: 'CREATE SOURCE' };
  const connection = await requireConnection(context, session, statement.connection, role, 'postgres');
  const address = await connectionAddress(context, session, connection.id);
  const origin = await checkSource(address, shownName(statement.connection), statement.publication);

  const id = String(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  const gate = gateView(Number(id));
  const owner = quoteIdentifier(role.name);
  await perform(
    context,
    session,
    [
      `CREATE VIEW ${gate} AS SELECT p.lsn FROM millrace.source_progress p WHERE p.source_id = ${id}`,
      `GRANT SELECT ON ${gate} TO ${owner}`,
      `INSERT INTO millrace.source (id, gate, connection_id, publication, slot, system_identifier, origin_database, auto_resync)
       VALUES (($1 ->> 'id')::bigint, ($1 ->> 'gate')::regclass, ($1 ->> 'connection')::bigint, $1 ->> 'publication', $1 ->> 'slot',
               $1 ->> 'system', $1 ->> 'database', ($1 ->> 'auto')::boolean)`,
    ],
    {
      id,
      gate,
      connection: connection.id,
      publication: statement.publication,
      slot: `millrace_${randomBytes(8).toString('hex')}`,
      system: origin.systemIdentifier,
      database: address.database,
      auto: statement.autoResync,
    },
  );
  const facade = `${quoteIdentifier(namespace.name)}.${quoteIdentifier(statement.name.name)}`;
  await session.query(`CREATE VIEW ${facade} AS SELECT lsn FROM ${gate}`, [], { quiet: true });
  await facadeTriggers(session, facade);
  await perform(context, session, ["UPDATE millrace.source SET facade = ($1 ->> 'facade')::oid WHERE id = ($1 ->> 'id')::bigint"], {
    id,
    facade: await facadeOid(session, facade),
  });
  if (await waitsForEngine(session)) {
    session.onCommit((after) =>
      awaitReady(after, [id], async () => {
        await dropSources(context, after, [id]);
      }),
    );
  }
  return { kind: 'done', tag: 'CREATE SOURCE' };
}

/** RESYNC returns when the source's tables are up to date. */
export async function alterSource(context: StatementContext, session: CallerSession, statement: AlterSource): Promise<StatementResult> {
  await requireCatalog(context, session);
  const { name, autoResync } = statement;
  const found = await findSource(session, name);
  if (found === null) {
    if (!statement.ifExists) throw undefinedObject('source', name);
    session.notice({ severity: 'NOTICE', code: '42704', message: `source "${shownName(name)}" does not exist, skipping` });
    return { kind: 'done', tag: 'ALTER SOURCE' };
  }
  await requireOwner(session, 'source', shownName(name), found.owner, await callerRole(session));
  await perform(
    context,
    session,
    [
      autoResync === null
        ? "UPDATE millrace.source SET resync_requested = true WHERE id = ($1 ->> 'id')::bigint"
        : "UPDATE millrace.source SET auto_resync = ($1 ->> 'auto')::boolean WHERE id = ($1 ->> 'id')::bigint",
    ],
    { id: found.id, auto: autoResync },
  );
  if (autoResync === null && (await waitsForEngine(session))) session.onCommit((after) => awaitResync(after, found.id, shownName(name)));
  return { kind: 'done', tag: 'ALTER SOURCE' };
}

async function findSource(session: CallerSession, name: QualifiedName): Promise<{ readonly id: string; readonly owner: string } | null> {
  const found = await findLive(session, name);
  if (found?.type === 'source') return found;
  if (found === null && !(await relationExists(session, name))) return null;
  throw millraceError('wrong_object_type', { name: shownName(name), kind: 'source' }, { position: name.at + 1 });
}

export async function facadeOid(session: CallerSession, quoted: string): Promise<string> {
  const row = await firstRow(session, 'SELECT $1::pg_catalog.regclass::oid', [quoted]);
  return row?.[0] ?? '0';
}
