/**
 * SUBSCRIBE, in its three dresses: as rows, as COPY data, as a cursor.
 * Invariant: Postgres decides whether the caller may read: every row comes through the facade, or for a caller who may SELECT it right then.
 */
import { millraceError } from '../errors.ts';
import type { CopySubscribe, DeclareSubscription, FetchSubscription, Subscribe } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { type CallerSession, type Feed, type FieldDescription, type StatementResult, UpstreamError } from './caller-session.ts';
import { callerRole, firstRow, requireCatalog, type StatementContext } from './context.ts';
import { droppable } from './dependents.ts';
import { isStreamTable, type LiveObject } from './names.ts';
import { QueryFeed } from './query-feed.ts';
import { copyFormat } from './subscribe-copy.ts';
import { relationGone, timestampsOf, type Understood, understand } from './subscribe-plan.ts';
import { backendPid, beginSubscription, endSubscription, holdSubscription } from './subscription-catalog.ts';
import { type ProblemHints, problemError, RelationFeed } from './subscription-feed.ts';

/** How long one statement waits for what comes, so that a lost client is noticed and a cancel is heard. */
const patienceMs = 1000;
const pageRows = 2000;

export async function subscribe(context: StatementContext, session: CallerSession, statement: Subscribe): Promise<StatementResult> {
  const feed = await openFeed(context, session, statement);
  return {
    kind: 'stream',
    fields: feed.fields,
    pages: pagesOf(feed, session),
    copy: null,
    tag: (rows) => `SUBSCRIBE ${rows}`,
    meanwhile: () => cancellable(session),
    abandon: () => void feed.close(null),
  };
}

export async function copySubscribe(context: StatementContext, session: CallerSession, statement: CopySubscribe): Promise<StatementResult> {
  const format = copyFormat(statement.options);
  const feed = await openFeed(context, session, statement.subscribe);
  const copy = format(feed.fields.map(({ name }) => name));
  return {
    kind: 'stream',
    fields: feed.fields,
    pages: pagesOf(feed, session),
    copy,
    tag: (rows) => `COPY ${rows}`,
    meanwhile: () => cancellable(session),
    abandon: () => void feed.close(null),
  };
}

/** A short statement, shorter than statement_timeout, that a cancel ends. */
async function cancellable(session: CallerSession): Promise<void> {
  await session.query(
    `SELECT pg_catalog.pg_sleep(CASE WHEN s.setting::pg_catalog.int4 BETWEEN 1 AND 200 THEN s.setting::pg_catalog.int4 / 2000.0 ELSE 0.1 END)
       FROM pg_catalog.pg_settings s WHERE s.name = 'statement_timeout'`,
    [],
    { quiet: true },
  );
}

export async function declareSubscription(
  context: StatementContext,
  session: CallerSession,
  { cursor, subscribe: asked }: DeclareSubscription,
): Promise<StatementResult> {
  if (!session.inTransactionBlock) {
    throw new UpstreamError({ S: 'ERROR', V: 'ERROR', C: '25P01', M: 'DECLARE CURSOR can only be used in transaction blocks' });
  }
  const there = await firstRow(session, 'SELECT 1 FROM pg_catalog.pg_cursors WHERE name OPERATOR(pg_catalog.=) $1', [cursor.name]);
  if (there !== null || session.cursors.has(cursor.name)) {
    throw new UpstreamError({ S: 'ERROR', V: 'ERROR', C: '42P03', M: `cursor "${cursor.name}" already exists` });
  }
  session.cursors.set(cursor.name, await openFeed(context, session, asked));
  return { kind: 'done', tag: 'DECLARE CURSOR' };
}

/** Without a timeout: waits for one row and gives what is there by then. With one: what comes until then. */
export async function fetchSubscription(
  session: CallerSession,
  { cursor, count, timeout, move }: FetchSubscription,
): Promise<StatementResult> {
  const feed = session.cursors.get(cursor.name);
  if (feed === undefined) throw new UpstreamError({ S: 'ERROR', V: 'ERROR', C: '34000', M: `cursor "${cursor.name}" does not exist` });
  if (count !== null && (!Number.isInteger(count) || count < 0)) {
    throw new UpstreamError({
      S: 'ERROR',
      V: 'ERROR',
      C: '55000',
      M: 'cursor can only scan forward',
      H: 'Declare it with SCROLL option to enable backward scan.',
    });
  }
  const given = timeout === null ? null : await firstRow(session, 'SELECT extract(epoch FROM $1::pg_catalog.interval) * 1000', [timeout]);
  const timeoutMs = given === null ? null : Number(given[0]);
  if (move) {
    let moved = 0;
    for await (const page of fetched(feed, session, count, timeoutMs)) moved += page.length;
    return { kind: 'done', tag: `MOVE ${moved}` };
  }
  return {
    kind: 'stream',
    fields: feed.fields,
    pages: fetched(feed, session, count, timeoutMs),
    copy: null,
    tag: (rows) => `FETCH ${rows}`,
    meanwhile: () => cancellable(session),
    abandon: () => undefined,
  };
}

async function* fetched(
  feed: Feed,
  session: CallerSession,
  count: number | null,
  timeoutMs: number | null,
): AsyncGenerator<readonly (readonly (string | null)[])[]> {
  const deadline = timeoutMs === null ? null : performance.now() + timeoutMs;
  let left = count ?? Number.POSITIVE_INFINITY;
  let patience = timeoutMs;
  while (left > 0) {
    const { rows, ended } = await feed.take(session, Math.min(left, pageRows), patience);
    if (rows.length > 0) yield rows;
    left -= rows.length;
    if (ended || rows.length === 0) return;
    patience = deadline === null ? 0 : Math.max(0, deadline - performance.now());
  }
}

export async function closeSubscription(session: CallerSession, name: string | null): Promise<StatementResult> {
  const feeds = name === null ? [...session.cursors.values()] : [session.cursors.get(name)];
  for (const feed of feeds) await feed?.close(session);
  if (name !== null) {
    session.cursors.delete(name);
    return { kind: 'done', tag: 'CLOSE CURSOR' };
  }
  session.cursors.clear();
  return { kind: 'forward', text: 'CLOSE ALL', behind: { sql: 'SELECT 1', answered: () => undefined } };
}

async function* pagesOf(feed: Feed, session: CallerSession): AsyncGenerator<readonly (readonly (string | null)[])[]> {
  try {
    for (;;) {
      const { rows, ended } = await feed.take(session, pageRows, null);
      if (rows.length > 0) yield rows;
      if (ended) return;
    }
  } finally {
    await feed.close(session);
  }
}

/** The columns a SUBSCRIBE has. */
export async function describeSubscribe(
  context: StatementContext,
  session: CallerSession,
  statement: Subscribe,
): Promise<readonly FieldDescription[]> {
  await requireCatalog(context, session);
  return (await understand(context, session, statement)).fields;
}

async function openFeed(context: StatementContext, session: CallerSession, statement: Subscribe): Promise<Feed> {
  await requireCatalog(context, session);
  const patience = await requireChanging(session);
  const understood = await understand(context, session, statement);
  const { fields, live, shape } = understood;
  const [asOf = null, upTo = null] = await timestampsOf(session, [statement.asOf, statement.upTo]);
  if (asOf !== null && upTo !== null && asOf > upTo) throw millraceError('subscription_bounds', { as_of: asOf, up_to: upTo });
  const snapshot = statement.snapshot ?? true;
  if (live === null) {
    const query = statement.target.kind === 'query' ? statement.target.query.text : '';
    const now = Number((await firstRow(session, 'SELECT millrace.epoch_ts()'))?.[0]);
    if (asOf !== null && asOf < now && statement.asOf?.atLeast !== true) throw millraceError('subscription_query_history', {});
    const pid = await backendPid(session);
    const id = await beginSubscription(context, session.database, pid, {
      relationId: null,
      owner: (await callerRole(session)).oid,
      from: null,
    });
    const { database } = session;
    const ended = (): Promise<void> => endSubscription(context, database, id ?? '0', pid);
    return new QueryFeed({ fields, shape, query, asOf: asOf === null || asOf < now ? null : asOf, snapshot, upTo, patience, ended });
  }
  return await openRelation(
    context,
    session,
    { ...understood, live },
    { asOf, atLeast: statement.asOf?.atLeast === true, upTo, snapshot, patience },
  );
}

interface Bounds {
  readonly asOf: number | null;
  readonly atLeast: boolean;
  readonly upTo: number | null;
  readonly snapshot: boolean;
  readonly patience: number;
}

async function openRelation(
  context: StatementContext,
  session: CallerSession,
  { shape, fields, live, durable }: Understood & { readonly live: LiveObject },
  bounds: Bounds,
): Promise<Feed> {
  const role = await callerRole(session);
  const relation = droppable(live).name;
  const denied = async (): Promise<Error> => {
    const kind = (await isStreamTable(session, live.id)) ? 'stream table' : droppable(live).kind;
    const who = { role: role.name, role_quoted: quoteIdentifier(role.name) };
    return millraceError('subscription_permission_denied', { kind, name: relation, name_quoted: relation, ...who });
  };
  const may = await firstRow(session, "SELECT pg_catalog.has_table_privilege($1::pg_catalog.oid, 'SELECT')", [live.facade]);
  if (may?.[0] !== 't') throw await denied();
  const pid = await backendPid(session);
  let { asOf, snapshot } = bounds;
  const wanted = { relationId: live.id, owner: role.oid, from: asOf };
  const id = durable?.id ?? (await beginSubscription(context, session.database, pid, wanted));
  if (id === null) throw millraceError('subscription_relation_new', { name: relation });
  try {
    if (durable !== null) {
      const acknowledged = await holdSubscription(context, session.database, pid, id);
      // What was acknowledged is done with: from there on only what has changed is news.
      if (asOf === null && acknowledged !== null) {
        asOf = acknowledged;
        snapshot = false;
      }
    }
    const overrun =
      durable === null
        ? 'SUBSCRIBE again.'
        : 'Type DROP DURABLE SUBSCRIPTION and CREATE DURABLE SUBSCRIPTION, and begin with its snapshot.';
    const gone = (): Error =>
      durable === null ? millraceError('subscription_relation_gone', { name: relation }) : relationGone(durable.name, relation);
    const since = await outboxSince(session, id, relation, bounds.patience, { overrun, gone });
    if (asOf !== null && asOf < since) {
      if (!bounds.atLeast) throw millraceError('subscription_no_history', { as_of: asOf, since, relation });
      asOf = since;
    }
    const feed = new RelationFeed({
      context,
      fields,
      shape,
      relation,
      pid,
      asOf,
      snapshot,
      facade: live.facade,
      subscription: id,
      isDurable: durable !== null,
      upTo: bounds.upTo,
      patience: bounds.patience,
      types: await outboxTypes(session, live.id),
      hints: { overrun, denied, gone },
    }).opened(session.database);
    // A portal may be left in the middle: its transaction ends, and the cursor would stay.
    if (!session.inTransactionBlock) session.onCommit((after) => feed.release(after));
    return feed;
  } catch (error) {
    await endSubscription(context, session.database, id, pid).catch(() => undefined);
    throw error;
  }
}

/** Waits for the outbox; answers from where on it has everything. */
async function outboxSince(session: CallerSession, id: string, relation: string, patience: number, hints: ProblemHints): Promise<number> {
  for (;;) {
    const row = await firstRow(
      session,
      'SELECT w.ts, w.since, w.problem, w.detail, w.hint FROM millrace.subscription_wait($1::bigint, -1, $2::integer) w',
      [id, String(patience)],
    );
    const [ts, since, problem, detail, hint] = row ?? [];
    if (problem !== null && problem !== undefined) throw problemError(problem, relation, { detail, hint, ...hints });
    if (ts !== null && ts !== undefined) return Number(since ?? ts);
  }
}

async function outboxTypes(session: CallerSession, relationId: string): Promise<readonly string[]> {
  const found = await session.query(
    `SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
      WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attname ~ '^v[0-9]+$' AND NOT a.attisdropped ORDER BY a.attnum`,
    [`millrace_data.o${relationId}`],
    { quiet: true },
  );
  return found.rows.map(([type]) => type ?? 'text');
}

/** Raises where time stands still; else how long one statement may wait. */
async function requireChanging(session: CallerSession): Promise<number> {
  const row = await firstRow(
    session,
    `SELECT pg_catalog.current_setting('transaction_isolation'), (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'statement_timeout')`,
  );
  const level = row?.[0] ?? '';
  const timeout = Number(row?.[1] ?? 0);
  const patience = timeout > 0 ? Math.max(20, Math.min(patienceMs, Math.floor(timeout / 2))) : patienceMs;
  if (/^read (un)?committed$/.test(level)) return patience;
  if (session.inTransactionBlock || session.isOneTransaction) throw millraceError('subscription_isolation', { level: level.toUpperCase() });
  return Math.min(patience, 50);
}
