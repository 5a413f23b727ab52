/**
 * Which functions a live view may call.
 * Invariant: a live view's result depends on rows only, and maintaining it runs nobody's code with Millrace's rights. Functions of users are
 * found by what Postgres recorded the view to depend on, so also behind operators, casts, aggregates and domains.
 */
import { functionKindsSql } from '../catalog/view-inputs.ts';
import { millraceError } from '../errors.ts';
import type { FunctionKind } from '../ivm/types.ts';
import { functionNames } from '../sql/postgres-parser.ts';
import type { CallerSession } from './caller-session.ts';
import { type CallerRole, perform, type StatementContext } from './context.ts';

/** SQL value functions and stable functions whose result changes with time, transaction or session although no row changes. */
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
]);

/** Stable functions of pg_catalog that read the catalog, the server's state or any table by name, and so show what no delta tells of. */
const readsElsewhere =
  /^(pg_(?!typeof$|size_)|has_|txid_|inet_(client|server)_|to_reg|row_security_active$|(table|schema|database|query|cursor)_to_xml|(obj|col|shobj)_description$)/;

interface CalledFunction {
  readonly signature: string;
  readonly owner: string;
  readonly trusted: boolean;
  readonly volatile: boolean;
}

/** Kinds of the functions with these names, as printed in a view: without schema for pg_catalog. */
export async function functionKinds(
  context: StatementContext,
  session: CallerSession,
  names: readonly string[],
): Promise<Record<string, FunctionKind>> {
  if (names.length === 0) return {};
  const found = (await perform(context, session, [functionKindsSql('$1')], { names })) as Record<string, FunctionKind> | null;
  return found ?? {};
}

/** A function whose result changes although no row changes. */
export interface UnstableFunction {
  readonly name: string;
  readonly volatile: boolean;
}

/** Those of them that tell the time of the transaction: what compares it may be kept all the same. */
export const timely: ReadonlySet<string> = new Set([
  ...['now', 'transaction_timestamp', 'current_date', 'current_timestamp', 'localtimestamp'],
]);

/** Builtin functions beside those of time that may run with Millrace's rights: they reveal nothing and do nothing. */
const harmless = new Set([
  ...['random', 'random_normal', 'clock_timestamp', 'timeofday', 'gen_random_uuid', 'uuidv4', 'uuidv7'],
  ...[
    'now',
    'transaction_timestamp',
    'statement_timestamp',
    'current_date',
    'current_time',
    'current_timestamp',
    'localtime',
    'localtimestamp',
  ],
]);

/**
 * Raises not_materializable or untrusted_function for the first function that must not be in a live view. Answers one that tells the time, which must
 * be compared only.
 * `views`: the new view and the plain views it looks through, OIDs; `queries`: their texts as Postgres prints them.
 */
export async function requireMaterializable(
  context: StatementContext,
  session: CallerSession,
  views: readonly string[],
  queries: readonly string[],
  role: CallerRole,
): Promise<string | null> {
  const { unstable, called } = await unstableFunctions(context, session, views, queries);
  const first = unstable.find(({ name }) => !timely.has(name));
  if (first !== undefined) throw millraceError('not_materializable', { function: first.name });
  requireTrusted(called, role);
  return unstable[0]?.name ?? null;
}

/**
 * The first function that keeps a view from being maintained by changes; null when there is none. Raises for those that must not run
 * with Millrace's rights in any way of keeping it.
 */
export async function functionsOfView(
  context: StatementContext,
  session: CallerSession,
  views: readonly string[],
  queries: readonly string[],
  role: CallerRole,
): Promise<UnstableFunction | null> {
  const { unstable, called } = await unstableFunctions(context, session, views, queries);
  const harmful = unstable.find(({ name, own }) => !own && !harmless.has(name));
  if (harmful !== undefined) throw millraceError('not_materializable', { function: harmful.name });
  requireTrusted(called, role);
  return unstable.find(({ name }) => !timely.has(name)) ?? unstable[0] ?? null;
}

function requireTrusted(called: readonly CalledFunction[], role: CallerRole): void {
  const untrusted = called.find((one) => !one.trusted);
  if (untrusted !== undefined && !role.superuser) {
    throw millraceError('untrusted_function', { function: untrusted.signature, owner: untrusted.owner });
  }
}

interface FoundFunctions {
  /** `own`: a user's, whose owner says whether it may run. */
  readonly unstable: readonly (UnstableFunction & { readonly own: boolean })[];
  readonly called: readonly CalledFunction[];
}

async function unstableFunctions(
  context: StatementContext,
  session: CallerSession,
  views: readonly string[],
  queries: readonly string[],
): Promise<FoundFunctions> {
  const names = [...new Set(queries.flatMap((query) => functionNames(query)))];
  const found = (await perform(
    context,
    session,
    [
      `SELECT jsonb_build_object(
                'builtin', (SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object('name', p.proname, 'volatility', p.provolatile)), '[]')
                              FROM pg_proc p
                             WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.provolatile <> 'i'
                               AND p.proname IN (SELECT jsonb_array_elements_text($1 -> 'names'))),
                'called', (SELECT coalesce(jsonb_agg(to_jsonb(f)), '[]')
                             FROM millrace.functions_called(ARRAY(SELECT jsonb_array_elements_text($1 -> 'views')::oid)) f))`,
    ],
    { names, views },
  )) as { builtin: { name: string; volatility: 's' | 'v' }[]; called: CalledFunction[] };
  return {
    unstable: [
      ...names.filter((name) => changing.has(name)).map((name) => ({ name, volatile: false, own: false })),
      ...found.builtin
        .filter(({ name, volatility }) => !changing.has(name) && (volatility === 'v' || readsElsewhere.test(name)))
        .map(({ name, volatility }) => ({ name, volatile: volatility === 'v', own: false })),
      ...found.called
        .filter((called) => called.volatile)
        .map((called) => ({ name: called.signature.replace(/\(.*$/s, ''), volatile: true, own: true })),
    ],
    called: found.called,
  };
}
