/** Extended statements, one by one: who handles which. Invariant: the switch is exhaustive, so a statement of the grammar cannot be forgotten. */
import { millraceError } from '../errors.ts';
import type { ExtendedStatement } from '../sql/ast.ts';
import { alterMigration } from './alter-migration.ts';
import { alterSink } from './alter-sink.ts';
import type { CallerSession, FieldDescription, StatementResult, StatementRunner } from './caller-session.ts';
import { CatalogClients } from './catalog-client.ts';
import { alterConnection, createConnection, validateConnection } from './connections.ts';
import { catalogPresent, firstRow, type StatementContext, type StatementServices } from './context.ts';
import { dropConcerns, dropRelation, dropSchema } from './drop.ts';
import { dropObject } from './drop-named.ts';
import { acknowledgeDurableSubscription, createDurableSubscription, dropDurableSubscriptions } from './durable-subscriptions.ts';
import { createMaterializedView, readsLive, refreshMaterializedView } from './materialized-views.ts';
import { createMigration, explainFields, explainMigration } from './migrations.ts';
import { findLive } from './names.ts';
import { claimsPgtrickle, runPgtrickle, upstreamText } from './pgtrickle.ts';
import { swapSchemas } from './schema-swap.ts';
import { alterSecret, createSecret } from './secrets.ts';
import { showCreate, showCreateFields, showFields, showObjects } from './show.ts';
import { differenceFields } from './sink-difference.ts';
import { createSink } from './sinks.ts';
import { alterSource, createSource } from './sources.ts';
import { closeSubscription, copySubscribe, declareSubscription, describeSubscribe, fetchSubscription, subscribe } from './subscribe.ts';
import { createTableFromSource } from './tables.ts';

/** One per worker process. */
export function createStatementRunner(services: StatementServices): StatementRunner {
  const context: StatementContext = {
    ...services,
    installed: new Set(),
    ownPgtrickle: new Set(),
    catalogs: new CatalogClients(services.upstream),
  };
  return {
    claims: (statement, text, session, ahead = false) => claims(context, statement, text, session, ahead),
    describe: (statement, session) => describe(context, statement, session),
    upstreamText: (statement, text) => {
      if (statement.type === 'close_subscription' && statement.cursor === null) return text;
      return statement.type === 'mentions_pgtrickle' ? upstreamText(text) : null;
    },
    run: (statement, text, session) => run(context, statement, text, session),
  };
}

async function claims(
  context: StatementContext,
  statement: ExtendedStatement,
  text: string,
  session: CallerSession,
  ahead: boolean,
): Promise<boolean> {
  switch (statement.type) {
    case 'mentions_pgtrickle':
      return await claimsPgtrickle(context, session, text);
    case 'create_materialized_view':
    case 'refresh_materialized_view':
    case 'drop_relation':
    case 'drop_schema':
      // Without a catalog nothing is live, unless the text itself makes it: then one of its statements is extended anyway.
      return (await catalogPresent(context, session)) && (ahead || (await concerns(context, statement, session)));
    case 'fetch_subscription':
      return session.cursors.has(statement.cursor.name);
    case 'close_subscription':
      return statement.cursor === null ? session.cursors.size > 0 : session.cursors.has(statement.cursor.name);
    default:
      // Also SHOW CREATE of something ordinary, which is not valid Postgres anyway.
      return true;
  }
}

type Candidate = Extract<
  ExtendedStatement,
  { readonly type: 'create_materialized_view' | 'refresh_materialized_view' | 'drop_relation' | 'drop_schema' }
>;

async function concerns(context: StatementContext, statement: Candidate, session: CallerSession): Promise<boolean> {
  switch (statement.type) {
    case 'create_materialized_view':
      return await readsLive(context, session, statement);
    case 'refresh_materialized_view':
      return (await findLive(session, statement.name)) !== null;
    case 'drop_relation':
    case 'drop_schema':
      return await dropConcerns(session, statement);
  }
}

async function describe(
  context: StatementContext,
  statement: ExtendedStatement,
  session: CallerSession,
): Promise<readonly FieldDescription[] | null> {
  switch (statement.type) {
    case 'show_objects':
      return showFields(statement);
    case 'show_create':
      return showCreateFields;
    case 'explain_migration':
      return explainFields;
    case 'subscribe':
      return await describeSubscribe(context, session, statement);
    case 'fetch_subscription':
      return statement.move ? null : (session.cursors.get(statement.cursor.name)?.fields ?? null);
    case 'alter_sink':
      return isDryRun(statement) ? differenceFields : null;
    default:
      return null;
  }
}

function isDryRun({ action }: Extract<ExtendedStatement, { readonly type: 'alter_sink' }>): boolean {
  return action.kind === 'set_from' && action.dryRun;
}

async function run(
  context: StatementContext,
  statement: ExtendedStatement,
  text: string,
  session: CallerSession,
): Promise<StatementResult> {
  const tag = writingTag(statement);
  if (tag !== null && (await firstRow(session, "SELECT pg_catalog.current_setting('transaction_read_only')"))?.[0] === 'on') {
    throw millraceError('read_only_transaction', { tag });
  }
  return await carryOut(context, statement, text, session);
}

/** The command tag of a statement that writes, for the error in a read-only transaction. */
function writingTag(statement: ExtendedStatement): string | null {
  switch (statement.type) {
    case 'show_objects':
    case 'show_create':
    case 'explain_migration':
    case 'validate_connection':
    case 'refresh_materialized_view':
    case 'mentions_pgtrickle':
    case 'subscribe':
    case 'copy_subscribe':
    case 'declare_subscription':
    case 'fetch_subscription':
    case 'close_subscription':
      return null;
    case 'create_table_from_source':
      return 'CREATE TABLE';
    case 'alter_schema_swap':
      return 'ALTER SCHEMA';
    case 'drop_object':
    case 'drop_relation':
      return `DROP ${statement.kind.toUpperCase()}`;
    default:
      return statement.type.replaceAll('_', ' ').toUpperCase();
  }
}

function carryOut(context: StatementContext, statement: ExtendedStatement, text: string, session: CallerSession): Promise<StatementResult> {
  switch (statement.type) {
    case 'create_secret':
      return createSecret(context, session, statement);
    case 'alter_secret':
      return alterSecret(context, session, statement);
    case 'create_connection':
      return createConnection(context, session, statement);
    case 'alter_connection':
      return alterConnection(context, session, statement);
    case 'validate_connection':
      return validateConnection(context, session, statement);
    case 'create_source':
      return createSource(context, session, statement);
    case 'alter_source':
      return alterSource(context, session, statement);
    case 'create_table_from_source':
      return createTableFromSource(context, session, statement);
    case 'create_sink':
      return createSink(context, session, statement);
    case 'alter_sink':
      return alterSink(context, session, statement);
    case 'create_migration':
      return createMigration(context, session, statement, text);
    case 'explain_migration':
      return explainMigration(context, session, statement);
    case 'alter_migration':
      return alterMigration(context, session, statement);
    case 'create_materialized_view':
      return createMaterializedView(context, session, statement);
    case 'refresh_materialized_view':
      return refreshMaterializedView(session, statement);
    case 'alter_schema_swap':
      return swapSchemas(session, statement);
    case 'drop_object':
      return dropObject(context, session, statement);
    case 'drop_relation':
      return dropRelation(context, session, statement);
    case 'drop_schema':
      return dropSchema(context, session, statement, text);
    case 'show_objects':
      return showObjects(context, session, statement);
    case 'show_create':
      return showCreate(context, session, statement);
    case 'subscribe':
      return subscribe(context, session, statement);
    case 'copy_subscribe':
      return copySubscribe(context, session, statement);
    case 'declare_subscription':
      return declareSubscription(context, session, statement);
    case 'fetch_subscription':
      return fetchSubscription(session, statement);
    case 'close_subscription':
      return closeSubscription(session, statement.cursor?.name ?? null);
    case 'create_durable_subscription':
      return createDurableSubscription(context, session, statement);
    case 'acknowledge_durable_subscription':
      return acknowledgeDurableSubscription(context, session, statement);
    case 'drop_durable_subscription':
      return dropDurableSubscriptions(context, session, statement);
    case 'mentions_pgtrickle':
      return runPgtrickle(context, session, text);
  }
}
