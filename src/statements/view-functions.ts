/**
 * Which functions a live view may call.
 * Invariant: a live view's result depends on rows only, and maintaining it runs nobody's code with Millrace's rights.
 */
import { millraceError } from '../errors.ts';
import type { FunctionKind } from '../ivm/types.ts';
import type { CallerSession } from './caller-session.ts';
import type { CallerRole } from './context.ts';

/** Stable functions whose result changes with time, transaction or session although no row changes. */
const changing = new Set([
  'now',
  'transaction_timestamp',
  'statement_timestamp',
  'current_date',
  'current_time',
  'current_timestamp',
  'localtime',
  'localtimestamp',
  'current_user',
  'current_role',
  'session_user',
  'user',
  'current_catalog',
  'current_schema',
  'current_schemas',
  'current_database',
  'current_setting',
  'txid_current',
  'pg_current_xact_id',
  'pg_backend_pid',
  'inet_client_addr',
  'inet_client_port',
]);

interface FoundFunction {
  readonly shown: string;
  readonly kind: string;
  readonly volatile: boolean;
  readonly setReturning: boolean;
  readonly trusted: boolean;
  readonly owner: string;
  readonly signature: string;
}

async function findFunctions(session: CallerSession, names: readonly string[]): Promise<FoundFunction[]> {
  if (names.length === 0) return [];
  const result = await session.query(
    `SELECT f.shown, p.prokind, p.provolatile = 'v', p.proretset, n.nspname = 'pg_catalog' OR r.rolsuper, r.rolname, p.oid::pg_catalog.regprocedure
       FROM pg_catalog.json_array_elements_text($1::json) AS f(shown)
       JOIN pg_catalog.pg_proc p ON p.proname = (pg_catalog.parse_ident(f.shown))[pg_catalog.cardinality(pg_catalog.parse_ident(f.shown))]
       JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
       JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
      WHERE pg_catalog.cardinality(pg_catalog.parse_ident(f.shown)) = 1 AND n.nspname = 'pg_catalog'
         OR n.nspname = (pg_catalog.parse_ident(f.shown))[1]`,
    [JSON.stringify(names)],
    { quiet: true },
  );
  return result.rows.map(([shown, kind, volatile, setReturning, trusted, owner, signature]) => ({
    shown: shown ?? '',
    kind: kind ?? 'f',
    volatile: volatile === 't',
    setReturning: setReturning === 't',
    trusted: trusted === 't',
    owner: owner ?? '',
    signature: signature ?? '',
  }));
}

export async function functionKinds(session: CallerSession, names: readonly string[]): Promise<Record<string, FunctionKind>> {
  const kinds: Record<string, FunctionKind> = {};
  for (const found of await findFunctions(session, names)) {
    const known = kinds[found.shown];
    kinds[found.shown] = {
      aggregate: found.kind === 'a' || known?.aggregate === true,
      setReturning: found.setReturning || known?.setReturning === true,
    };
  }
  return kinds;
}

/** Raises not_materializable or untrusted_function for the first function that must not be in a live view. */
export async function requireMaterializable(session: CallerSession, names: readonly string[], role: CallerRole): Promise<void> {
  const bare = names.find((name) => changing.has(name.toLowerCase()));
  if (bare !== undefined) throw millraceError('not_materializable', { function: bare });
  for (const found of await findFunctions(session, names)) {
    if (found.volatile) throw millraceError('not_materializable', { function: found.shown });
    if (!found.trusted && !role.superuser) throw millraceError('untrusted_function', { function: found.signature, owner: found.owner });
  }
}
