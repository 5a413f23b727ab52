/** Rights that a new object gets from an old one. Pure. Invariant: nobody may do more with the new one than with the old. */
import { quoteBody, quoteLiteral } from '../sql/quote.ts';
import type { TableName } from './model.ts';
import { qualified } from './places.ts';

/** Nobody but its owner has rights on `target`: not even those that default privileges give. */
const revoked = `    FOR g IN SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
               FROM pg_class c, LATERAL (SELECT e.grantee FROM aclexplode(c.relacl) e UNION ALL
                                         SELECT e.grantee FROM pg_attribute a, aclexplode(a.attacl) e WHERE a.attrelid = c.oid) acl
              WHERE c.oid = target::regclass AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', target, g.grantee);
    END LOOP;
`;

/**
 * Lines of plpgsql: whoever has rights on one relation as a whole has the same on another, and nobody else has any. `from` and `to`: expressions of
 * their OIDs; `row`: a record variable.
 */
export const sameRights = (what: 'TABLE' | 'SEQUENCE', from: string, to: string, row: string): string => {
  const grantee = `CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee`;
  return `        FOR ${row} IN SELECT ${grantee}
                   FROM pg_class c, aclexplode(c.relacl) acl WHERE c.oid = ${to} AND acl.grantee <> c.relowner
        LOOP
            EXECUTE format('REVOKE ALL ON ${what} %s FROM %s CASCADE', ${to}::regclass, ${row}.grantee);
        END LOOP;
        FOR ${row} IN SELECT acl.privilege_type, acl.is_grantable, ${grantee}
                   FROM pg_class c, aclexplode(c.relacl) acl WHERE c.oid = ${from} AND acl.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT %s ON ${what} %s TO %s%s', ${row}.privilege_type, ${to}::regclass, ${row}.grantee, CASE WHEN ${row}.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
        END LOOP;`;
};

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
