/**
 * Queries without a defined answer.
 * Invariant: what passes here has one right result for one state of its inputs (up to ties that Postgres itself leaves open).
 */
import { millraceError } from '../errors.ts';
import { at, type Fields, isFields, list } from './tree.ts';

/** Throws for LIMIT/OFFSET without ORDER BY (except inside EXISTS, where it changes nothing), row locks and TABLESAMPLE. */
export function refuseUndefined(select: Fields): void {
  visit(select, false);
}

function visit(value: unknown, insideExists: boolean): void {
  if (Array.isArray(value)) {
    for (const item of value) visit(item, insideExists);
    return;
  }
  if (!isFields(value)) return;
  if (limits(value) && list(value['sortClause']).length === 0 && !insideExists) {
    refuse('LIMIT without ORDER BY in a live view: which rows it keeps is not defined; add an ORDER BY');
  }
  if (list(value['lockingClause']).length > 0) refuse('FOR UPDATE and FOR SHARE are not possible in a live view');
  if (value['RangeTableSample'] !== undefined) refuse('TABLESAMPLE in a live view: which rows it takes is not defined');
  const exists = at(value, 'SubLink');
  if (exists?.['subLinkType'] === 'EXISTS_SUBLINK') {
    visit(at(exists, 'subselect', 'SelectStmt'), true);
    return;
  }
  for (const inner of Object.values(value)) visit(inner, false);
}

function limits(fields: Fields): boolean {
  return (['limitCount', 'limitOffset'] as const).some((name) => {
    const limit = fields[name];
    return limit !== undefined && !isNull(limit);
  });
}

/** LIMIT NULL and LIMIT ALL keep everything. */
function isNull(value: unknown): boolean {
  return at(value, 'A_Const')?.['isnull'] === true || at(value, 'TypeCast', 'arg', 'A_Const')?.['isnull'] === true;
}

function refuse(message: string): never {
  throw millraceError('feature_not_supported', { message });
}
