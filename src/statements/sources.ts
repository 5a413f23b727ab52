/**
 * CREATE SOURCE.
 * Invariant: the slot is the engine's to create, after the commit, so that a rolled back CREATE SOURCE leaves nothing on the origin.
 */
import { randomBytes } from 'node:crypto';
import { gateView } from '../catalog/model.ts';
import type { CreateSource } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { connectionAddress } from './connections.ts';
import { callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { facadeTriggers, nameTaken } from './facades.ts';
import { creationNamespace, requireNamed, shownName } from './names.ts';
import { checkSource } from './origin-checks.ts';
import { dropSources } from './removal.ts';
import { awaitReady, waitsForEngine } from './wait.ts';

export async function createSource(context: StatementContext, session: CallerSession, statement: CreateSource): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const namespace = await creationNamespace(session, statement.name);
  if (await nameTaken(session, namespace.oid, statement)) return { kind: 'done', tag: 'CREATE SOURCE' };
  const connection = await requireNamed(context, session, 'connection', statement.connection, role);
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
      `INSERT INTO millrace.source (id, gate, connection_id, publication, slot, system_identifier, origin_database)
       VALUES (($1 ->> 'id')::bigint, ($1 ->> 'gate')::regclass, ($1 ->> 'connection')::bigint, $1 ->> 'publication', $1 ->> 'slot',
               $1 ->> 'system', $1 ->> 'database')`,
    ],
    {
      id,
      gate,
      connection: connection.id,
      publication: statement.publication,
      slot: `millrace_${randomBytes(8).toString('hex')}`,
      system: origin.systemIdentifier,
      database: address.database,
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

export async function facadeOid(session: CallerSession, quoted: string): Promise<string> {
  const row = await firstRow(session, 'SELECT $1::pg_catalog.regclass::oid', [quoted]);
  return row?.[0] ?? '0';
}
