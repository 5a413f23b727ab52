/**
 * CREATE, ACKNOWLEDGE and DROP DURABLE SUBSCRIPTION.
 * Invariant: what was acknowledged commits with the caller's transaction; what was not is kept, and given again to the next reader.
 */
import { millraceError } from '../errors.ts';
import type { AcknowledgeDurableSubscription, CreateDurableSubscription, DropDurableSubscription } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { droppable } from './dependents.ts';
import { creationNamespace, findNamed, isStreamTable, requireNamed, requireOwner, shownName, undefinedObject } from './names.ts';
import { requireSubscribable, timestampsOf } from './subscribe-plan.ts';

const kind = 'durable subscription';

export async function createDurableSubscription(
  context: StatementContext,
  session: CallerSession,
  { name, relation, ifNotExists }: CreateDurableSubscription,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const namespace = await creationNamespace(session, name);
  const there = await findNamed(context, session, 'subscription', { ...name, schema: namespace.name });
  if (there !== null) {
    if (!ifNotExists) throw millraceError('durable_subscription_exists', { name: shownName(name) }, { position: name.at + 1 });
    session.notice({ severity: 'NOTICE', code: '42710', message: `${kind} "${shownName(name)}" already exists, skipping` });
    return { kind: 'done', tag: 'CREATE DURABLE SUBSCRIPTION' };
  }
  const role = await callerRole(session);
  const live = await requireSubscribable(context, session, relation);
  const may = await firstRow(session, "SELECT pg_catalog.has_table_privilege($1::pg_catalog.oid, 'SELECT')", [live.facade]);
  if (may?.[0] !== 't') {
    const called = { kind: (await isStreamTable(session, live.id)) ? 'stream table' : droppable(live).kind, name: shownName(relation) };
    const who = { role: role.name, role_quoted: quoteIdentifier(role.name) };
    throw millraceError(
      'subscription_permission_denied',
      { ...called, name_quoted: droppable(live).name, ...who },
      { position: relation.at + 1 },
    );
  }
  await perform(
    context,
    session,
    [
      `INSERT INTO millrace.subscription (relation_id, namespace, name, owner)
       VALUES (($1 ->> 'relation')::bigint, ($1 ->> 'namespace')::oid, $1 ->> 'name', ($1 ->> 'owner')::oid)`,
    ],
    { relation: live.id, namespace: namespace.oid, name: name.name, owner: role.oid },
  );
  return { kind: 'done', tag: 'CREATE DURABLE SUBSCRIPTION' };
}

/** Everything before the timestamp has been dealt with. */
export async function acknowledgeDurableSubscription(
  context: StatementContext,
  session: CallerSession,
  { name, upTo }: AcknowledgeDurableSubscription,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const found = await requireNamed(context, session, 'subscription', name, await callerRole(session));
  const bound = (await timestampsOf(session, [upTo]))[0] ?? 0;
  // Up to the present is up to the last epoch.
  const sql = 'SELECT CASE WHEN $1::bigint <= millrace.now() THEN least($1::bigint, millrace.epoch_ts() + 1) ELSE $1::bigint END';
  const position = Number((await firstRow(session, sql, [String(bound)]))?.[0]) - 1;
  const outcome = (await perform(
    context,
    session,
    [
      `WITH moved AS (
         UPDATE millrace.subscription s SET ts = ($1 ->> 'ts')::bigint FROM millrace.epoch e
          WHERE s.id = ($1 ->> 'id')::bigint AND s.cut_ts IS NOT NULL AND ($1 ->> 'ts')::bigint BETWEEN coalesce(s.ts, s.cut_ts) AND e.ts RETURNING s.id)
       SELECT jsonb_build_object('moved', EXISTS (SELECT FROM moved), 'from', coalesce(s.ts, s.cut_ts), 'now', e.ts)
         FROM millrace.subscription s, millrace.epoch e WHERE s.id = ($1 ->> 'id')::bigint`,
    ],
    { id: found.id, ts: position },
  )) as { moved: boolean; from: number | null; now: number } | null;
  // What is done with twice is done with.
  if (outcome !== null && !outcome.moved && (outcome.from === null || position > outcome.now)) {
    const detail = outcome.from === null ? 'Nothing was read yet.' : `The present is ${outcome.now}.`;
    throw millraceError('durable_subscription_ahead', { name: shownName(name), up_to: bound, detail }, { position: upTo.at + 1 });
  }
  return { kind: 'done', tag: 'ACKNOWLEDGE DURABLE SUBSCRIPTION' };
}

export async function dropDurableSubscriptions(
  context: StatementContext,
  session: CallerSession,
  { names, ifExists }: DropDurableSubscription,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  for (const name of names) {
    const found = await findNamed(context, session, 'subscription', name);
    if (found === null) {
      if (!ifExists) throw undefinedObject(kind, name);
      session.notice({ severity: 'NOTICE', code: '42704', message: `${kind} "${shownName(name)}" does not exist, skipping` });
      continue;
    }
    await requireOwner(session, kind, shownName(name), found.owner, role);
    await perform(context, session, ["DELETE FROM millrace.subscription WHERE id = ($1 ->> 'id')::bigint"], { id: found.id });
  }
  return { kind: 'done', tag: 'DROP DURABLE SUBSCRIPTION' };
}
