/** ALTER SCHEMA a SWAP WITH b. Invariant: three renames in the caller's transaction; whoever depends on an object keeps it, whatever its name. */
import { millraceError } from '../errors.ts';
import type { AlterSchemaSwap, Identifier } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { callerRole, firstRow } from './context.ts';
import { requireOwner } from './names.ts';

const done: StatementResult = { kind: 'done', tag: 'ALTER SCHEMA' };

export async function swapSchemas(session: CallerSession, statement: AlterSchemaSwap): Promise<StatementResult> {
  const role = await callerRole(session);
  for (const schema of [statement.a, statement.b]) {
    const found = await schemaOwner(session, schema);
    if (found === null) {
      if (statement.ifExists && schema === statement.a) {
        session.notice({ severity: 'NOTICE', code: '3F000', message: `schema "${schema.name}" does not exist, skipping` });
        return done;
      }
      throw millraceError(
        'undefined_schema',
        { name: schema.name, name_quoted: quoteIdentifier(schema.name) },
        { position: schema.at + 1 },
      );
    }
    if (/^(pg_|information_schema$|millrace$|millrace_data$|mz_)/.test(schema.name)) {
      throw millraceError(
        'invalid_option',
        {
          message: 'swapping a system schema is not supported',
          detail: `"${schema.name}" belongs to the system.`,
          hint: 'Swap schemas of your own.',
        },
        { position: schema.at + 1 },
      );
    }
    await requireOwner(session, 'schema', schema.name, found, role);
  }
  if (statement.a.name === statement.b.name) return done;
  const a = quoteIdentifier(statement.a.name);
  const b = quoteIdentifier(statement.b.name);
  const aside = quoteIdentifier(`millrace_swap_${(await firstRow(session, 'SELECT pg_catalog.pg_backend_pid()'))?.[0] ?? ''}`);
  await session.query(`ALTER SCHEMA ${a} RENAME TO ${aside}`);
  await session.query(`ALTER SCHEMA ${b} RENAME TO ${a}`);
  await session.query(`ALTER SCHEMA ${aside} RENAME TO ${b}`);
  return done;
}

async function schemaOwner(session: CallerSession, schema: Identifier): Promise<string | null> {
  return (await firstRow(session, 'SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = $1', [schema.name]))?.[0] ?? null;
}
