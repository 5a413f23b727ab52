/**
 * Views that stand in the way of another type of a column below them: taken down and put up again, within one transaction.
 * Invariant: what is put up is what was there (name, owner, query, options, grants, comments, triggers, rules, defaults); what cannot be put up
 * again is not taken down, but named as an obstacle. Grants come from the owner afterwards.
 */
import type { RawConnection } from '../replication/session-contract.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';

export interface KeptView {
  readonly oid: number;
  /** Qualified and quoted. */
  readonly name: string;
  /** Those of the views asked for that it reads, or is. */
  readonly roots: readonly number[];
  readonly owner: string;
  readonly query: string;
  readonly options: readonly string[] | null;
  /** Nobody has granted or revoked anything of it as a whole. */
  readonly isUngranted: boolean;
  readonly grants: readonly {
    readonly privilege: string;
    readonly column: string | null;
    readonly to: string;
    readonly grantable: boolean;
  }[];
  readonly comments: readonly { readonly column: string | null; readonly text: string }[];
  readonly defaults: readonly { readonly column: string; readonly text: string }[];
  /** Statements. */
  readonly triggers: readonly string[];
  readonly rules: readonly string[];
}

export interface Above {
  /** What is read comes before what reads it. */
  readonly views: readonly KeptView[];
  /** `what`: as in "materialized view v1.m depends on it". */
  readonly obstacles: readonly { readonly roots: readonly number[]; readonly what: string }[];
}

/** The views that read a column of a table, by OID. */
export async function viewsOfColumns(session: RawConnection, table: string, columns: readonly string[]): Promise<number[]> {
  const [found] = await session.query(
    `SELECT DISTINCT w.ev_class::bigint
       FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid
       JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
      WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
        AND d.refobjid = ${quoteLiteral(table)}::pg_catalog.regclass AND a.attname IN (${columns.map(quoteLiteral).join(', ')})`,
  );
  return (found?.rows ?? []).map(([oid]) => Number(oid));
}

const aboveSql = (roots: readonly number[]): string => `
WITH RECURSIVE reached(oid, root, depth) AS (
  SELECT r, r, 0 FROM unnest('{${roots.join(',')}}'::oid[]) r
  UNION
  SELECT w.ev_class, reached.root, reached.depth + 1
    FROM reached
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = reached.oid AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite w ON w.oid = d.objid AND w.ev_class <> reached.oid
    JOIN pg_class c ON c.oid = w.ev_class AND c.relkind = 'v'
   WHERE reached.depth < 100
), above AS (
  SELECT c.oid, c.reltype, c.relowner, max(r.depth) AS depth, jsonb_agg(DISTINCT r.root::bigint) AS roots
    FROM reached r JOIN pg_class c ON c.oid = r.oid GROUP BY c.oid, c.reltype, c.relowner
), obstacles AS (
  SELECT v.roots, pg_describe_object(CASE WHEN d.classid = 'pg_rewrite'::regclass AND c.relkind = 'm' THEN 'pg_class'::regclass ELSE d.classid END,
           CASE WHEN d.classid = 'pg_rewrite'::regclass AND c.relkind = 'm' THEN c.oid ELSE d.objid END, 0) || ' depends on it' AS what
    FROM above v
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = v.oid
    LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
    LEFT JOIN pg_class c ON c.oid = w.ev_class
   WHERE NOT (d.classid = 'pg_rewrite'::regclass AND c.relkind = 'v')
     AND NOT (d.classid = 'pg_type'::regclass AND d.objid = v.reltype)
     AND NOT (d.classid = 'pg_trigger'::regclass AND EXISTS (SELECT FROM pg_trigger t WHERE t.oid = d.objid AND t.tgrelid = v.oid))
     AND NOT (d.classid = 'pg_attrdef'::regclass AND EXISTS (SELECT FROM pg_attrdef x WHERE x.oid = d.objid AND x.adrelid = v.oid))
  UNION ALL
  SELECT v.roots, pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on its row type'
    FROM above v
    JOIN pg_type t ON t.oid = v.reltype
    JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray)
   WHERE NOT (d.classid = 'pg_type'::regclass AND d.objid = t.typarray)
  UNION ALL
  SELECT v.roots, 'view ' || millrace.qualified_name(v.oid) || ' is a member of ' || pg_describe_object(d.refclassid, d.refobjid, 0)
    FROM above v JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = v.oid AND d.refclassid = 'pg_extension'::regclass
  UNION ALL
  SELECT v.roots, 'view ' || millrace.qualified_name(v.oid) || ' has a security label'
    FROM above v JOIN pg_seclabel l ON l.classoid = 'pg_class'::regclass AND l.objoid = v.oid
  UNION ALL
  SELECT v.roots, 'view ' || millrace.qualified_name(v.oid) || ' belongs to role ' || quote_ident(pg_get_userbyid(v.relowner)) ||
         ', whose rights the role that Millrace connects as does not have'
    FROM above v WHERE NOT pg_has_role(v.relowner, 'USAGE')
)
SELECT jsonb_build_object(
  'obstacles', (SELECT coalesce(jsonb_agg(jsonb_build_object('roots', o.roots, 'what', o.what)), '[]') FROM obstacles o),
  'views', (SELECT coalesce(jsonb_agg(jsonb_build_object(
      'oid', c.oid::bigint, 'name', millrace.qualified_name(c.oid), 'roots', v.roots, 'owner', quote_ident(pg_get_userbyid(c.relowner)),
      'query', millrace.definition_of(c.oid), 'options', to_jsonb(c.reloptions), 'isUngranted', c.relacl IS NULL,
      'grants', (SELECT coalesce(jsonb_agg(jsonb_build_object('privilege', g.privilege_type, 'column', g.name,
                     'to', CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END, 'grantable', g.is_grantable)), '[]')
                   FROM (SELECT NULL::name AS name, a.* FROM aclexplode(c.relacl) a
                         UNION ALL
                         SELECT x.attname, a.* FROM pg_attribute x, aclexplode(x.attacl) a WHERE x.attrelid = c.oid AND x.attacl IS NOT NULL) g),
      'comments', (SELECT coalesce(jsonb_agg(jsonb_build_object('column', a.attname, 'text', d.description)), '[]')
                     FROM pg_description d LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0
                    WHERE d.classoid = 'pg_class'::regclass AND d.objoid = c.oid),
      'defaults', (SELECT coalesce(jsonb_agg(jsonb_build_object('column', a.attname, 'text', pg_get_expr(x.adbin, x.adrelid))), '[]')
                     FROM pg_attrdef x JOIN pg_attribute a ON a.attrelid = x.adrelid AND a.attnum = x.adnum WHERE x.adrelid = c.oid),
      'triggers', (SELECT coalesce(jsonb_agg(pg_get_triggerdef(t.oid) ORDER BY t.oid), '[]') FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
      'rules', (SELECT coalesce(jsonb_agg(pg_get_ruledef(w.oid) ORDER BY w.oid), '[]') FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN'))
    ORDER BY v.depth, c.oid), '[]')
    FROM above v JOIN pg_class c ON c.oid = v.oid))`;

/** These views and all that read them, plain ones at any depth. */
export async function viewsAbove(session: RawConnection, roots: readonly number[]): Promise<Above> {
  if (roots.length === 0) return { views: [], obstacles: [] };
  const [found] = await session.query(aboveSql(roots));
  return JSON.parse(found?.rows[0]?.[0] ?? '{}') as Above;
}

/** Takes them down, the last first: in the order in which readers lock them. */
export const takeDown = (views: readonly KeptView[]): string[] => [...views].reverse().map(({ name }) => `DROP VIEW ${name}`);

/** Puts one up again; `query`: another than it had. */
export function putUp(view: KeptView, query = view.query): string[] {
  const { name, options } = view;
  const on = (column: string | null): string => (column === null ? `VIEW ${name}` : `COLUMN ${name}.${quoteIdentifier(column)}`);
  return [
    `CREATE VIEW ${name}${options === null ? '' : ` WITH (${options.join(', ')})`} AS ${query}`,
    ...view.defaults.map(({ column, text }) => `ALTER VIEW ${name} ALTER COLUMN ${quoteIdentifier(column)} SET DEFAULT ${text}`),
    ...view.rules,
    ...view.triggers,
    ...view.comments.map(({ column, text }) => `COMMENT ON ${on(column)} IS ${quoteLiteral(text)}`),
    `ALTER VIEW ${name} OWNER TO ${view.owner}`,
    // Default privileges may have added some.
    `DO $do$DECLARE g text; BEGIN
  FOR g IN SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
             FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a WHERE c.oid = ${quoteLiteral(name)}::regclass${view.isUngranted ? ' AND a.grantee <> c.relowner' : ''}
  LOOP EXECUTE format('REVOKE ALL ON %s FROM %s', ${quoteLiteral(name)}, g); END LOOP;
END$do$`,
    ...view.grants.map(
      ({ privilege, column, to, grantable }) =>
        `GRANT ${privilege}${column === null ? '' : ` (${quoteIdentifier(column)})`} ON ${name} TO ${to}${grantable ? ' WITH GRANT OPTION' : ''}`,
    ),
    ...known(view),
  ];
}

/** The catalog knows views by OID. */
function known({ oid, name }: KeptView): string[] {
  const now = `${quoteLiteral(name)}::regclass::oid`;
  return [
    `UPDATE millrace.relation SET facade = ${now} WHERE facade = ${oid}`,
    `UPDATE millrace.relation SET gate = ${now} WHERE gate = ${oid}`,
    `UPDATE millrace.live_view SET definition = ${now} WHERE definition = ${oid}`,
    `UPDATE millrace.stream_table_source SET source = ${now} WHERE source = ${oid}`,
    `UPDATE millrace.source_gate SET source = ${now} WHERE source = ${oid}`,
  ];
}
