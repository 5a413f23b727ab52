/**
 * CREATE TABLE .. FROM SOURCE: a version of an origin table.
 * Invariant: a version's columns (attnums) are fixed here for good; versions of one origin table share one storage,
 * and a version whose columns the storage already has is readable when its transaction commits, with no copy.
 */
import type { Storage, StorageColumn, VersionColumn } from '../catalog/model.ts';
import { createSpool, createStaging, createStorage, tableGate } from '../catalog/storage-ddl.ts';
import { millraceError } from '../errors.ts';
import type { CreateTableFromSource } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { connectionAddress } from './connections.ts';
import { type CallerRole, callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { facadeTriggers, nameTaken } from './facades.ts';
import { creationNamespace, findLive, type LiveObject, quotedName, relationExists, shownName, undefinedObject } from './names.ts';
import { describeReference, type OriginTable } from './origin-checks.ts';
import { dropFailed } from './removal.ts';
import { facadeOid } from './sources.ts';
import { awaitReady, waitsForEngine } from './wait.ts';

export async function createTableFromSource(
  context: StatementContext,
  session: CallerSession,
  statement: CreateTableFromSource,
): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const namespace = await creationNamespace(session, statement.name);
  if (await nameTaken(session, namespace.oid, statement)) return { kind: 'done', tag: 'CREATE TABLE' };
  const source = await usableSource(context, session, statement, role);
  const reference = statement.reference ?? { parts: [statement.name.name], at: statement.name.at };
  const address = await connectionAddress(context, session, source.connectionId);
  const origin = await describeReference(address, {
    reference: reference.parts,
    position: reference.at + 1,
    publication: source.publication,
    source: shownName(statement.source),
    role: address.user,
  });
  const shown = versionColumns(statement, origin);
  const needed = await storageColumns(session, statement, origin, shown);
  const storage = await storageFor(context, session, source.id, origin, needed);

  const facade = `${quoteIdentifier(namespace.name)}.${quoteIdentifier(statement.name.name)}`;
  const columns: VersionColumn[] = shown.map((column) => ({ attnum: column.attnum, name: column.name }));
  const id = Number(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  const state = storage.ready ? 'ready' : 'pending';
  await perform(
    context,
    session,
    [
      tableGate(id, storage.id, columns, state),
      `GRANT SELECT ON millrace_data.r${id} TO ${quoteIdentifier(role.name)}`,
      `INSERT INTO millrace.relation (id, kind, gate, state)
       VALUES (($1 ->> 'id')::bigint, 'table', ($1 ->> 'gate')::regclass, $1 ->> 'state')`,
      `INSERT INTO millrace.table_version (relation_id, source_id, storage_id, columns, excluded, text_columns)
       VALUES (($1 ->> 'id')::bigint, ($1 ->> 'source')::bigint, ($1 ->> 'storage')::bigint, $1 -> 'columns',
               ARRAY(SELECT jsonb_array_elements_text($1 -> 'excluded')), ARRAY(SELECT jsonb_array_elements_text($1 -> 'text')))`,
    ],
    {
      id,
      gate: `millrace_data.r${id}`,
      state,
      source: source.id,
      storage: storage.id,
      columns,
      excluded: statement.excludeColumns.map((column) => column.name),
      text: statement.textColumns.map((column) => column.name),
    },
  );
  await session.query(`CREATE VIEW ${facade} AS SELECT * FROM millrace_data.r${id}`, [], { quiet: true });
  await facadeTriggers(session, facade);
  await attachFacade(context, session, id, facade);
  if (!storage.ready && (await waitsForEngine(session))) {
    session.onCommit((after) => awaitReady(after, [String(id)], ({ name }) => dropFailed(context, after, id, name)));
  }
  return { kind: 'done', tag: 'CREATE TABLE' };
}

/** Ties a facade to its relation once it exists. */
export async function attachFacade(context: StatementContext, session: CallerSession, relationId: number, facade: string): Promise<void> {
  await perform(context, session, ["UPDATE millrace.relation SET facade = ($1 ->> 'facade')::oid WHERE id = ($1 ->> 'id')::bigint"], {
    id: relationId,
    facade: await facadeOid(session, facade),
  });
}

interface UsableSource {
  readonly id: string;
  readonly connectionId: string;
  readonly publication: string;
}

async function usableSource(
  context: StatementContext,
  session: CallerSession,
  statement: CreateTableFromSource,
  role: CallerRole,
): Promise<UsableSource> {
  const found: LiveObject | null = await findLive(session, statement.source);
  if (found === null) {
    if (await relationExists(session, statement.source))
      throw millraceError(
        'wrong_object_type',
        { name: shownName(statement.source), kind: 'source' },
        { position: statement.source.at + 1 },
      );
    throw undefinedObject('source', statement.source);
  }
  if (found.type !== 'source') {
    throw millraceError('wrong_object_type', { name: shownName(statement.source), kind: 'source' }, { position: statement.source.at + 1 });
  }
  const may = await firstRow(session, "SELECT pg_catalog.has_table_privilege($1::oid, 'SELECT')", [found.facade]);
  if (may?.[0] !== 't') {
    throw millraceError('source_permission_denied', {
      name: shownName(statement.source),
      name_quoted: quotedName(statement.source),
      role: role.name,
      role_quoted: quoteIdentifier(role.name),
    });
  }
  return (await perform(
    context,
    session,
    [
      `SELECT jsonb_build_object('id', s.id::text, 'connectionId', s.connection_id::text, 'publication', s.publication)
         FROM millrace.source s WHERE s.id = ($1 ->> 'id')::bigint`,
    ],
    { id: found.id },
  )) as UsableSource;
}

type OriginColumn = OriginTable['columns'][number];

/** The columns shown: all published ones in attnum order but the excluded. */
function versionColumns(statement: CreateTableFromSource, origin: OriginTable): OriginColumn[] {
  const reference = `${quoteIdentifier(origin.schema)}.${quoteIdentifier(origin.name)}`;
  const seen = new Set<string>();
  for (const column of [...statement.excludeColumns, ...statement.textColumns]) {
    const position = { position: column.at + 1 };
    if (!origin.columns.some((known) => known.name === column.name)) {
      const folded = origin.columns.find((known) => known.name.toLowerCase() === column.name.toLowerCase());
      throw millraceError(
        'undefined_origin_column',
        {
          column: column.name,
          reference,
          columns: origin.columns.map((known) => known.name).join(', '),
          hint: folded === undefined ? '' : `Perhaps you meant ${quoteIdentifier(folded.name)}.`,
        },
        position,
      );
    }
    if (seen.has(column.name)) {
      throw millraceError(
        'invalid_option',
        { message: `column "${column.name}" named more than once in TEXT or EXCLUDE COLUMNS` },
        position,
      );
    }
    seen.add(column.name);
  }
  const excluded = new Set(statement.excludeColumns.map((column) => column.name));
  const shown = origin.columns.filter(
    (column) =>
      !excluded.has(column.name) &&
      column.generated === '' &&
      (origin.publishedColumns === null || origin.publishedColumns.includes(column.attnum)),
  );
  if (shown.length === 0) {
    const [first] = statement.excludeColumns;
    throw millraceError(
      'invalid_option',
      { message: 'a table from a source must show at least one column', detail: `Nothing is left of ${reference}.` },
      first === undefined ? {} : { position: first.at + 1 },
    );
  }
  return shown;
}

/** What the storage must hold: what is shown, and the key although it may be excluded. */
async function storageColumns(
  session: CallerSession,
  statement: CreateTableFromSource,
  origin: OriginTable,
  shown: readonly OriginColumn[],
): Promise<StorageColumn[]> {
  const text = new Set(statement.textColumns.map((column) => column.name));
  const wanted = origin.columns.filter((column) => shown.includes(column) || origin.identityKey.includes(column.attnum));
  const native = wanted.filter((column) => !text.has(column.name) && !column.baseIsBuiltin).map((column) => column.formattedType);
  const known = await knownNames(session, 'to_regtype', native);
  const missing = wanted.filter((column) => !text.has(column.name) && !column.baseIsBuiltin && !known.has(column.formattedType));
  if (missing.length > 0) {
    const reference = `${quoteIdentifier(origin.schema)}.${quoteIdentifier(origin.name)}`;
    throw millraceError(
      'unsupported_origin_type',
      {
        reference,
        columns: missing.map((column) => `column ${quoteIdentifier(column.name)} is of type ${column.formattedType}`).join('\n'),
        names: missing.map((column) => quoteIdentifier(column.name)).join(', '),
      },
      { position: (statement.reference?.at ?? statement.name.at) + 1 },
    );
  }
  const collations = await knownNames(
    session,
    'to_regcollation',
    wanted.flatMap((column) => (column.collation === null ? [] : [column.collation])),
  );
  return wanted.map((column) => ({
    attnum: column.attnum,
    name: column.name,
    // A domain the upstream does not have arrives as the type below it.
    type: text.has(column.name) ? 'text' : column.baseIsBuiltin ? column.baseType : column.formattedType,
    originType: column.formattedType,
    collation: column.collation !== null && collations.has(column.collation) ? column.collation : null,
  }));
}

/** Those of the names that the upstream knows. */
async function knownNames(
  session: CallerSession,
  find: 'to_regtype' | 'to_regcollation',
  names: readonly string[],
): Promise<ReadonlySet<string>> {
  if (names.length === 0) return new Set();
  const found = await session.query(
    `SELECT t FROM pg_catalog.json_array_elements_text($1::json) AS t WHERE pg_catalog.${find}(t) IS NOT NULL`,
    [JSON.stringify(names)],
    { quiet: true },
  );
  return new Set(found.rows.map((row) => row[0] ?? ''));
}

/** The storage that has these columns: the one there is, or a new one with the columns of both that takes its place once copied. */
async function storageFor(
  context: StatementContext,
  session: CallerSession,
  sourceId: string,
  origin: OriginTable,
  needed: readonly StorageColumn[],
): Promise<{ readonly id: number; readonly ready: boolean }> {
  // Two versions of one table, created at the same time, agree on the storage. An advisory lock, because a row lock on the source
  // would hold up the engine for as long as the caller's transaction stays open. The lock on storages keeps it from clearing one away that is
  // chosen here, and from nothing else.
  const existing = (await perform(
    context,
    session,
    [
      "SELECT to_jsonb(pg_advisory_xact_lock(1835625581, ($1 ->> 'source')::integer) IS NULL)",
      `SELECT coalesce(jsonb_agg(jsonb_build_object('id', s.id, 'columns', s.columns, 'keyAttnums', s.key_attnums, 'state', s.state, 'extends', s.extends,
                                'sound', s.missed IS NULL AND s.sent_as = $1 ->> 'sentAs' AND NOT EXISTS (SELECT FROM millrace.table_version v JOIN millrace.relation r ON r.id = v.relation_id
                                                                           WHERE v.storage_id = s.id AND r.error ? 'resync'),
                                'shown', (SELECT coalesce(jsonb_agg(DISTINCT (c ->> 'attnum')::integer), '[]')
                                            FROM millrace.table_version v CROSS JOIN LATERAL jsonb_array_elements(v.columns) c WHERE v.storage_id = s.id))
                                ORDER BY s.id DESC), '[]')
         FROM (SELECT x.* FROM millrace.storage x
                WHERE x.source_id = ($1 ->> 'source')::bigint AND x.origin_oid = ($1 ->> 'oid')::oid AND x.resyncs IS NULL
                  AND x.state IN ('new', 'copying', 'copied', 'live')
                  FOR KEY SHARE) s`,
    ],
    { source: sourceId, oid: origin.oid, sentAs: origin.sentAs },
  )) as KnownStorage[];
  const withKey = existing.filter((storage) => JSON.stringify([...storage.keyAttnums]) === JSON.stringify([...origin.identityKey]));
  const sameKey = withKey.filter((storage) => storage.extends === null);
  const fitting = sameKey.filter(
    (storage) => storage.sound && needed.every((column) => storage.columns.some((has) => isSame(has, column) && isWhole(has))),
  );
  const chosen = fitting.find((storage) => storage.state === 'live') ?? fitting[0];
  if (chosen !== undefined) return { id: chosen.id, ready: chosen.state === 'live' };

  const extension = extensionFor(withKey, needed);
  if (extension?.kind === 'there') return { id: extension.id, ready: false };
  if (extension?.kind === 'new')
    return await newStorage(context, session, sourceId, origin, { columns: extension.columns, extends: extension.of, supersedes: null });
  const newest = sameKey[0];
  const current = new Map(origin.columns.map((column) => [column.attnum, column.formattedType]));
  const whole = (newest?.columns ?? []).map(({ filling: _, lost: __, ...column }): StorageColumn => column);
  const carried = whole.filter(
    (column) =>
      !needed.some((has) => has.attnum === column.attnum) &&
      current.get(column.attnum) === column.originType &&
      (origin.publishedColumns === null || origin.publishedColumns.includes(column.attnum)),
  );
  const clash = [newest, ...withKey.filter((storage) => storage.extends === newest?.id)].some((storage) =>
    storage?.columns.some((column) => needed.some((has) => has.attnum === column.attnum && has.type !== column.type)),
  );
  const columns = [...needed, ...carried].sort((a, b) => a.attnum - b.attnum);
  // Versions that show the same column as different types (TEXT COLUMNS in one of them) need a storage each. So do those that wait for a
  // resynchronisation and those that come meanwhile: rows are missing there. Rows that have lost a column do not look like those of a copy.
  const isTaken = (column: StorageColumn): boolean => column.lost !== true && columns.some((has) => has.attnum === column.attnum);
  const supersedes = newest?.sound && !clash && newest.columns.every(isTaken) ? newest.id : null;
  return await newStorage(context, session, sourceId, origin, { columns, supersedes, extends: null });
}

interface KnownStorage extends Pick<Storage, 'id' | 'columns' | 'keyAttnums' | 'state' | 'extends'> {
  /** Its rows are what the origin has, and none of its versions waits for a resynchronisation. */
  readonly sound: boolean;
  /** attnums of the columns that versions of it show, or did before they erred. */
  readonly shown: readonly number[];
}

/** All rows have their values of it. */
const isWhole = ({ filling, lost }: StorageColumn): boolean => filling === undefined && lost === undefined;

const isSame = (has: StorageColumn, column: StorageColumn): boolean =>
  has.attnum === column.attnum && has.type === column.type && has.originType === column.originType;

/**
 * A storage that lacks only columns gets those, copied into a storage that extends it: the one there is or is to be made. Null: there is no such storage,
 * or the columns that it has are of other types, or rows cannot be told apart and so have to be copied whole. Or a version that errs stands on a column
 * that would have to be made anew.
 */
function extensionFor(
  storages: readonly KnownStorage[],
  needed: readonly StorageColumn[],
):
  | { readonly kind: 'there'; readonly id: number }
  | { readonly kind: 'new'; readonly of: number; readonly columns: StorageColumn[] }
  | null {
  const base = storages.find((storage) => storage.extends === null);
  if (base === undefined || base.keyAttnums.length === 0 || !base.sound) return null;
  const under = storages.filter((storage) => storage.extends === base.id);
  const there = under.find((storage) => storage.sound && needed.every((column) => storage.columns.some((has) => isSame(has, column))));
  if (there !== undefined) return { kind: 'there', id: there.id };
  const clash = [base, ...under].some(({ columns }) =>
    columns.some((has) => needed.some((column) => column.attnum === has.attnum && !isSame(has, column))),
  );
  const isHeld = ({ attnum, filling }: StorageColumn): boolean =>
    filling !== undefined && base.shown.includes(attnum) && needed.some((column) => column.attnum === attnum);
  if (clash || base.columns.some(isHeld)) return null;
  const columns = needed.map((column): StorageColumn => {
    const has = base.columns.find(({ attnum }) => attnum === column.attnum);
    if (has === undefined || has.filling !== undefined) return column;
    return base.keyAttnums.includes(column.attnum) ? has : { ...has, elsewhere: true };
  });
  return { kind: 'new', of: base.id, columns: columns.sort((a, b) => a.attnum - b.attnum) };
}

async function newStorage(
  context: StatementContext,
  session: CallerSession,
  sourceId: string,
  origin: OriginTable,
  wanted: { readonly columns: readonly StorageColumn[]; readonly supersedes: number | null; readonly extends: number | null },
): Promise<{ readonly id: number; readonly ready: false }> {
  const { columns } = wanted;
  const id = Number(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  const shape = { id, columns, keyAttnums: origin.identityKey };
  await perform(
    context,
    session,
    [
      createStorage(shape),
      createStaging(shape),
      createSpool(shape),
      `INSERT INTO millrace.storage (id, source_id, origin_oid, origin_schema, origin_name, columns, key_attnums, supersedes, extends, rows_estimate, sent_as)
       VALUES (($1 ->> 'id')::bigint, ($1 ->> 'source')::bigint, ($1 ->> 'oid')::oid, $1 ->> 'schema', $1 ->> 'name', $1 -> 'columns',
               ARRAY(SELECT jsonb_array_elements_text($1 -> 'key')::integer), ($1 ->> 'supersedes')::bigint, ($1 ->> 'extends')::bigint, ($1 ->> 'estimate')::bigint, $1 ->> 'sentAs')`,
    ],
    {
      id,
      source: sourceId,
      oid: origin.oid,
      schema: origin.schema,
      name: origin.name,
      columns,
      key: origin.identityKey.map(String),
      supersedes: wanted.supersedes,
      extends: wanted.extends,
      estimate: origin.rowsEstimate,
      sentAs: origin.sentAs,
    },
  );
  return { id, ready: false };
}
