/** Extended statements, one by one: who handles which. Invariant: the switch is exhaustive, so a statement of the grammar cannot be forgotten. */
import type { ExtendedStatement } from '../sql/ast.ts';
import type { CallerSession, FieldDescription, StatementResult, StatementRunner } from './caller-session.ts';
import { alterConnection, createConnection, validateConnection } from './connections.ts';
import { catalogPresent, type StatementContext, type StatementServices } from './context.ts';
import { dropConcerns, dropRelation, dropSchema } from './drop.ts';
import { dropObject } from './drop-named.ts';
import { createMaterializedView, readsLive, refreshMaterializedView } from './materialized-views.ts';
import { findLive } from './names.ts';
import { swapSchemas } from './schema-swap.ts';
import { alterSecret, createSecret } from './secrets.ts';
import { showCreate, showCreateFields, showFields, showObjects } from './show.ts';
import { createSource } from './sources.ts';
import { createTableFromSource } from './tables.ts';

/** One per worker process. */
export function createStatementRunner(services: StatementServices): StatementRunner {
  const context: StatementContext = { ...services, installed: new Set() };
  return {
    claims: (statement, session) => claims(context, statement, session),
    describe,
    run: (statement, text, session) => run(context, statement, text, session),
  };
}

async function claims(context: StatementContext, statement: ExtendedStatement, session: CallerSession): Promise<boolean> {
  switch (statement.type) {
    case 'create_materialized_view':
      return readsLive(context, session, statement);
    case 'refresh_materialized_view':
      return (await catalogPresent(context, session)) && (await findLive(session, statement.name)) !== null;
    case 'drop_relation':
    case 'drop_schema':
      return (await catalogPresent(context, session)) && (await dropConcerns(session, statement));
    case 'show_create': {
      // SHOW CREATE of something ordinary is not valid Postgres anyway, so it is always ours.
      return true;
    }
    default:
      return true;
  }
}

function describe(statement: ExtendedStatement): readonly FieldDescription[] | null {
  switch (statement.type) {
    case 'show_objects':
      return showFields(statement);
    case 'show_create':
      return showCreateFields;
    default:
      return null;
  }
}

function run(context: StatementContext, statement: ExtendedStatement, text: string, session: CallerSession): Promise<StatementResult> {
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
    case 'create_table_from_source':
      return createTableFromSource(context, session, statement);
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
  }
}
