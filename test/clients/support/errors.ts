/** What a client tells of an error of the server. */

/** The fields of the wire protocol under the names that drivers give them. */
const fields = [
  'severity',
  'code',
  'message',
  'detail',
  'hint',
  'position',
  'internalPosition',
  'internal_position',
  'internalQuery',
  'where',
  'schema',
  'schema_name',
  'table',
  'table_name',
  'column',
  'column_name',
  'dataType',
  'constraint',
  'constraint_name',
  'routine',
] as const;

export type ErrorFields = { readonly [field in (typeof fields)[number]]?: string };

/** Waits for the work to fail; the fields of the server's error, also where the client has wrapped it in one of its own. */
export async function errorOf(work: PromiseLike<unknown>): Promise<ErrorFields> {
  try {
    await work;
  } catch (error) {
    return fieldsOf(error);
  }
  throw new Error('no error where one was expected');
}

function fieldsOf(error: unknown): ErrorFields {
  const seen: Record<string, unknown> = { ...(error as object), message: (error as Error).message };
  const inner = seen['original'] ?? seen['driverError'] ?? seen['cause'] ?? (error as Error).cause;
  if (inner instanceof Error && /^[0-9A-Z]{5}$/.test((inner as { code?: string }).code ?? '')) return fieldsOf(inner);
  return Object.fromEntries(fields.filter((field) => seen[field] !== undefined).map((field) => [field, String(seen[field])]));
}
