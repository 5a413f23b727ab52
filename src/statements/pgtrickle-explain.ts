/** validate_query and explain_st: what the view compiler makes of a query, for users. Invariant: they change nothing. */
import { deltaTable, storageTable } from '../catalog/model.ts';
import { MillraceError, millraceError } from '../errors.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { explainSteps, maintainSql } from '../ivm/view-plan.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { type Arguments, requiredText } from './stream-table-options.ts';
import { choosePlan, createScratch, dropScratch, readDefinition, scratch, scratchView } from './stream-table-plan.ts';

interface Verdict {
  readonly result: 'ok' | 'warnings' | 'not_eligible';
  readonly detail: string;
}

/** One row: whether the query can be kept by changes, and why not. */
export async function validateQuery(context: StatementContext, session: CallerSession, given: Arguments): Promise<readonly Verdict[]> {
  await requireCatalog(context, session);
  const query = requiredText(given, 'query');
  // A query that is wrong is an answer, not an error: it must not end the caller's transaction.
  const wrong = await attempt(session, query);
  if (wrong !== null) return [{ result: 'not_eligible', detail: `The query does not run: ${wrong}` }];
  await createScratch(session, query);
  const verdict = await judge(context, session);
  await dropScratch(session);
  return [verdict];
}

async function attempt(session: CallerSession, query: string): Promise<string | null> {
  for (const sql of [scratchView(query), `SELECT * FROM ${scratch} LIMIT 0`]) {
    const row = await firstRow(session, `SELECT millrace.attempt($1) ->> 'message'`, [sql]);
    const message = row?.[0];
    if (message !== null && message !== undefined) return message;
  }
  return null;
}

async function judge(context: StatementContext, session: CallerSession): Promise<Verdict> {
  try {
    const definition = await readDefinition(context, session, await callerRole(session));
    const chosen = await choosePlan(context, session, definition, 0);
    if (chosen.mode === 'FULL' && !chosen.possible) {
      return { result: 'not_eligible', detail: `${chosen.reason}. Recommended mode: FULL` };
    }
    if (chosen.mode === 'FULL')
      return { result: 'warnings', detail: `Query is computed again at each refresh: ${chosen.reason}. Recommended mode: FULL` };
    const keyless = definition.sources.tables.filter((table) => table.keyAttnums.length === 0);
    // What is only counted and summed has no use for a key.
    if (keyless.length > 0 && (chosen.plan.body.kind !== 'aggregate' || chosen.plan.stages.length > 0)) {
      const names = keyless.map((table) => `${table.schema}.${table.name}`).join(', ');
      return {
        result: 'warnings',
        detail: `Query is IVM-eligible. Recommended mode: DIFFERENTIAL. Without a primary key, rows are compared by content: ${names}`,
      };
    }
    return { result: 'ok', detail: 'Query is IVM-eligible. Recommended mode: DIFFERENTIAL' };
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error;
    return { result: 'not_eligible', detail: [error.message, error.fields.detail].filter(Boolean).join('. ') };
  }
}

interface Property {
  readonly property: string;
  readonly value: string;
}

interface Explained {
  readonly id: number;
  readonly plan: ViewPlan;
  readonly query: string;
  readonly definition: string;
  readonly requested: string;
  readonly mode: string;
  readonly downgrade: string | null;
  readonly inputs: readonly { readonly id: number; readonly name: string; readonly storage: string }[];
  readonly columns: readonly string[];
  readonly status: string;
  readonly isPopulated: boolean;
}

export async function explainStreamTable(
  context: StatementContext,
  session: CallerSession,
  given: Arguments,
): Promise<readonly Property[]> {
  if (given['with_analyze'] === true) {
    throw millraceError('unsupported_parameter', {
      name: 'with_analyze',
      detail: 'Measuring a delta query would mean running it.',
      hint: 'pgtrickle.get_refresh_history() shows what refreshes took.',
    });
  }
  const found = await explained(context, session, requiredText(given, 'name'));
  const { plan } = found;
  const { way, reason } = plan.reason;
  const steps = stepsOf(found);
  return [
    { property: 'pgt_name', value: requiredText(given, 'name') },
    { property: 'defining_query', value: found.definition },
    { property: 'refresh_mode', value: found.mode },
    { property: 'configured_mode', value: found.requested },
    ...(found.downgrade === null ? [] : [{ property: 'downgrade_reason', value: found.downgrade }]),
    { property: 'status', value: found.status },
    { property: 'is_populated', value: String(found.isPopulated) },
    { property: 'dvm_supported', value: String(way !== 'full') },
    { property: 'way', value: way },
    { property: 'reason', value: reason },
    { property: 'operator_tree', value: steps.map(({ kind }) => kind).join(' -> ') },
    ...steps.map(({ name, text }) => ({ property: name, value: text })),
    { property: 'output_columns', value: found.columns.join(', ') },
    { property: 'sources', value: found.inputs.map((input) => input.name).join(', ') },
    ...deltas(found).map(({ input, sql }) => ({ property: `delta_query ${input}`, value: sql })),
  ];
}

/** The statements of a refresh, one text. */
export async function explainDeltas(context: StatementContext, session: CallerSession, given: Arguments): Promise<string> {
  const found = await explained(context, session, requiredText(given, 'name'));
  const steps = stepsOf(found).map(({ name, text }) => `-- ${name}: ${text}`);
  return [steps.join('\n'), ...deltas(found).map(({ input, sql }) => `-- changes of ${input}\n${sql}`)].join('\n\n');
}

/** The stages of the plan in the order in which they are maintained: `stage 1` .., `result`. */
function stepsOf({ plan, id }: Explained): readonly { readonly name: string; readonly kind: string; readonly text: string }[] {
  return explainSteps(plan, id).lines.map((line) => {
    const [, name = '', kind = '', rest = ''] = /^([^:]*): (\w+), (.*)$/s.exec(line) ?? [];
    return { name, kind, text: `${kind}, ${rest}` };
  });
}

function deltas({ id, plan, inputs }: Explained): readonly { readonly input: string; readonly sql: string }[] {
  const storages = new Map(inputs.map((input) => [input.id, input.storage]));
  return inputs.map((input) => ({
    input: input.name,
    sql: maintainSql(plan, id, new Set([input.id]), deltaTable, (of) => storages.get(of) ?? storageTable(of)).join(';\n'),
  }));
}

async function explained(context: StatementContext, session: CallerSession, name: string): Promise<Explained> {
  await requireCatalog(context, session);
  const id = (await firstRow(session, `SELECT millrace.stream_table_named(${quoteLiteral(name)})`))?.[0];
  return (await perform(
    context,
    session,
    [
      `SELECT jsonb_build_object(
                'id', t.relation_id, 'plan', lv.plan, 'query', t.query, 'definition', t.definition, 'requested', t.requested_mode,
                'mode', t.refresh_mode, 'downgrade', t.downgrade_reason, 'status', t.status, 'isPopulated', t.is_populated,
                'columns', (SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a JOIN millrace.relation r ON r.facade = a.attrelid
                             WHERE r.id = t.relation_id AND a.attnum > 0),
                'inputs', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                              'id', i.input_id,
                              'name', coalesce(millrace.qualified_name(coalesce(b.table_oid, r.facade)), 'dropped'),
                              'storage', CASE WHEN b.relation_id IS NOT NULL THEN
                                  (SELECT format('(SELECT %s FROM %s)', string_agg(format('%I AS c%s', a.attname, a.attnum), ', ' ORDER BY a.attnum),
                                                 millrace.qualified_name(b.table_oid))
                                     FROM pg_attribute a WHERE a.attrelid = b.table_oid AND a.attnum > 0 AND NOT a.attisdropped)
                                  ELSE format('millrace_data.s%s', coalesce(v.storage_id, i.input_id)) END) ORDER BY i.input_id), '[]')
                             FROM millrace.live_view_input i
                             JOIN millrace.relation r ON r.id = i.input_id
                             LEFT JOIN millrace.base_table b ON b.relation_id = i.input_id
                             LEFT JOIN millrace.table_version v ON v.relation_id = i.input_id
                            WHERE i.relation_id = t.relation_id))
         FROM millrace.stream_table t JOIN millrace.live_view lv USING (relation_id)
        WHERE coalesce(t.pgt_id, t.relation_id) = ($1 ->> 'id')::bigint AND t.replaces IS NULL AND EXISTS (SELECT FROM millrace.relation c WHERE c.id = t.relation_id AND c.facade IS NOT NULL)`,
    ],
    { id },
  )) as Explained;
}
