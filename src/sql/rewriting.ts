/**
 * What ALTER TABLE .. TYPE .. made of the values, as far as the text tells.
 * Invariant: when it is not sure, the answer is that nothing is known.
 */
import { parseSql } from './postgres-parser.ts';

/** Statements that run no others: none of them hides an ALTER TABLE. */
const plain: ReadonlySet<string> = new Set([
  'AlterTableStmt',
  'AlterObjectSchemaStmt',
  'CreateStmt',
  'DeleteStmt',
  'IndexStmt',
  'InsertStmt',
  'RenameStmt',
  'TransactionStmt',
  'TruncateStmt',
  'UpdateStmt',
  'VariableSetStmt',
]);

/**
 * Names of columns that the text gives another type by an expression (USING); the values of others went through a cast.
 * Null: it cannot be told. The parser has to be loaded.
 */
export function columnsWrittenUsing(query: string): ReadonlySet<string> | null {
  let statements: readonly unknown[];
  try {
    statements = (parseSql(query).stmts ?? []).map(({ stmt }) => stmt);
  } catch {
    return null;
  }
  const kinds = statements.flatMap((statement) => Object.keys(fields(statement)));
  if (!kinds.includes('AlterTableStmt') || kinds.some((kind) => !plain.has(kind))) return null;
  const written = new Set<string>();
  for (const statement of statements) {
    const { cmds } = fields(fields(statement)['AlterTableStmt']);
    for (const command of Array.isArray(cmds) ? cmds : []) {
      const { subtype, name, def } = fields(fields(command)['AlterTableCmd']);
      if (subtype !== 'AT_AlterColumnType') continue;
      if (fields(fields(def)['ColumnDef'])['raw_default'] !== undefined) written.add(String(name));
    }
  }
  // By which of its names is then uncertain.
  return written.size > 0 && kinds.includes('RenameStmt') ? null : written;
}

const fields = (value: unknown): Record<string, unknown> => (typeof value === 'object' && value !== null ? { ...value } : {});
