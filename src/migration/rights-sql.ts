/** Rights that a new object gets from an old one. Pure. Invariant: nobody may do more with the new one than with the old. */
import { quoteBody, quoteLiteral } from '../sql/quote.ts';
import type { TableName } from './model.ts';
import { oidOf, qualified } from './places.ts';
import type { Question } from './steps.ts';

/** Nobody but its owner has rights on `target`: not even those that default privileges give. */
const revoked = `    FOR g IN SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
               FROM pg_class c, LATERAL (SELECT e.grantee FROM aclexplode(c.relacl) e UNION ALL
                                         SELECT e.grantee FROM pg_attribute a, aclexplode(a.attacl) e WHERE a.attrelid = c.oid) acl
              WHERE c.oid = target::regclass AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', target, g.grantee);
    END LOOP;
`;

/** Which relation, if any, decides by its columns of which columns rights are looked at. */
type Columns = { readonly of: 'all' } | { readonly of: 'shared' | 'own'; readonly other: string };

/** Rights that others than the owner have on a relation as a whole, and on columns. `oid`: an expression. `own` columns: rights on those alone. */
const rightsOf = (oid: string, columns: Columns): string => {
  const other =
    columns.of === 'all'
      ? ''
      : ` AND ${columns.of === 'own' ? 'NOT ' : ''}EXISTS (SELECT FROM pg_attribute t WHERE t.attrelid = ${columns.other} AND t.attname = a.attname AND t.attnum > 0 AND NOT t.attisdropped)`;
  const whole = `SELECT c.relowner, NULL::name AS column_name, e.grantee, e.privilege_type, e.is_grantable FROM pg_class c, aclexplode(c.relacl) e WHERE c.oid = ${oid}
                     UNION ALL
                     `;
  return `SELECT CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END AS grantee, r.privilege_type, r.column_name, bool_or(r.is_grantable) AS is_grantable
               FROM (${columns.of === 'own' ? '' : whole}SELECT c.relowner, a.attname AS column_name, e.grantee, e.privilege_type, e.is_grantable
                       FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped, aclexplode(a.attacl) e WHERE c.oid = ${oid}${other}) r
              WHERE r.grantee <> r.relowner GROUP BY 1, 2, 3`;
};

/**
 * A query of statements (steps.ts): whoever has rights on one relation, or on columns that both have, has the same on another, and nobody else has any;
 * on columns that only the other has they stay as they are. Nothing where that is so already. `from` and `to`: expressions of their OIDs.
 */
export const sameRights = (
  what: 'TABLE' | 'SEQUENCE',
  from: string,
  to: string,
): string => `WITH had AS MATERIALIZED (${rightsOf(to, { of: 'all' })}),
             wanted AS MATERIALIZED (${rightsOf(from, { of: 'shared', other: to })} UNION ALL ${rightsOf(to, { of: 'own', other: from })}),
             -- What was granted by way of somebody's right to grant goes with that, so all of it is granted anew.
             anew AS MATERIALIZED (SELECT EXISTS (SELECT * FROM had EXCEPT SELECT * FROM wanted) AS yes)
        SELECT 1::bigint AS n, format('REVOKE ALL ON ${what} %s FROM %s CASCADE', ${to}::regclass, h.grantee) AS sql FROM (SELECT DISTINCT grantee FROM had) h, anew WHERE anew.yes
         UNION ALL
        SELECT 2, format('GRANT %s%s ON ${what} %s TO %s%s', w.privilege_type, coalesce(' (' || quote_ident(w.column_name) || ')', ''), ${to}::regclass, w.grantee, CASE WHEN w.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
          FROM (SELECT wanted.* FROM wanted, anew WHERE anew.yes UNION ALL (SELECT wanted.* FROM wanted, anew WHERE NOT anew.yes EXCEPT SELECT * FROM had)) w`;

/** The same of two relations, said while both have these names. */
export const keepRights = (from: TableName, to: TableName): Question => ({ ask: sameRights('TABLE', oidOf(from), oidOf(to)) });

/** Takes all rights on a relation from everybody but its owner. */
export function takeRights(relation: TableName): string {
  return `DO ${quoteBody(`
DECLARE
    g record;
    target CONSTANT text := ${quoteLiteral(qualified(relation))};
BEGIN
${revoked}END `)}`;
}

/** Gives `to` the rights that roles have on `from`, and no others: on the whole table, and on columns that both have. `columns`: only these; null: all. */
export function copyRights(from: TableName, to: TableName, columns: readonly string[] | null): string {
  const listed = columns === null ? 'true' : `a.attname IN (${columns.map(quoteLiteral).join(', ')})`;
  return `DO ${quoteBody(`
DECLARE
    g record;
    source CONSTANT regclass := ${quoteLiteral(qualified(from))}::regclass;
    target CONSTANT text := ${quoteLiteral(qualified(to))};
BEGIN
${revoked}    FOR g IN SELECT acl.privilege_type, acl.is_grantable, CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee, NULL::name AS column_name
               FROM pg_class c, aclexplode(c.relacl) acl
              WHERE c.oid = source AND acl.grantee <> c.relowner AND acl.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')
             UNION ALL
             SELECT acl.privilege_type, acl.is_grantable, CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END, a.attname
               FROM pg_attribute a, aclexplode(a.attacl) acl
              WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped AND ${listed}
                AND EXISTS (SELECT FROM pg_attribute t WHERE t.attrelid = target::regclass AND t.attname = a.attname AND NOT t.attisdropped)
    LOOP
        EXECUTE format('GRANT %s%s ON %s TO %s%s', g.privilege_type, CASE WHEN g.column_name IS NULL THEN '' ELSE format(' (%I)', g.column_name) END, target, g.grantee,
                       CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END `)}`;
}

/** Who may use the source's schema may use the schema of a version. */
export function copyUsage(from: string, to: string): string {
  return `DO ${quoteBody(`
DECLARE g record;
BEGIN
    FOR g IN SELECT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
               FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) acl WHERE n.nspname = ${quoteLiteral(from)} AND acl.privilege_type = 'USAGE'
    LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %s', ${quoteLiteral(to)}, g.grantee);
    END LOOP;
END `)}`;
}
