/** Identifiers of every kind, at the origin and here. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { eventually, leadsTo, type Stage, startStage, type TestClient } from './stage.ts';

const odd = [
  'Weird ""name""',
  'ünï 日本 😀',
  'UPPER',
  'x'.repeat(63),
  'select',
  'a.b',
  "it''s",
  ' blank ',
  'semi;colon--',
  '$1',
  '{relation}',
  '%I %s',
  '\\\\n',
];
const q = (name: string): string => `"${name}"`;

let stage: Stage;
let client: TestClient;
let origin: TestClient;
beforeAll(async () => {
  stage = await startStage();
  [client, origin] = await Promise.all([stage.connect(), stage.direct(stage.origin)]);
});
afterAll(() => stage.stop());

describe('odd names', () => {
  it('of everything at once', async () => {
    await origin.query(`CREATE SCHEMA ${q(odd[0] ?? '')}; CREATE PUBLICATION "Odd ""Publication'" FOR ALL TABLES`);
    for (const name of odd.slice(0, 6)) {
      await origin.query(
        `CREATE TABLE ${q(odd[0] ?? '')}.${q(name)} (${odd.map((column, i) => `${q(column)} int${i === 0 ? ' PRIMARY KEY' : ''}`).join(', ')})`,
      );
      await origin.query(`INSERT INTO ${q(odd[0] ?? '')}.${q(name)} VALUES (${odd.map((_, i) => i).join(', ')})`);
    }
    for (const name of odd.slice(0, 6)) {
      const s = q(name);
      const next = q(odd[(odd.indexOf(name) + 1) % odd.length] ?? '');
      await client.query(`CREATE SCHEMA ${s}`);
      await client.query(`CREATE SECRET ${s}.${s} AS 'x'`);
      await client.query(`CREATE CONNECTION ${s}.${s} TO POSTGRES (${leadsTo(stage.origin)}, PASSWORD SECRET ${s}.${s})`);
      await client.query(
        `CREATE SOURCE ${s}."s ${name}" FROM POSTGRES CONNECTION ${s}.${s} (PUBLICATION 'Odd "Publication''')`.replace(
          /"s x{63}"/,
          '"s x"',
        ),
      );
      const source = `${s}.${`"s ${name}"`.replace(/"s x{63}"/, '"s x"')}`;
      await client.query(
        `CREATE TABLE ${s}.${s} FROM SOURCE ${source} (REFERENCE ${q(odd[0] ?? '')}.${s}) WITH (EXCLUDE COLUMNS (${next}), TEXT COLUMNS (${s}))`,
      );
      await client.query(`CREATE MATERIALIZED VIEW ${s}."v" (${s}) AS SELECT max(${s}) FROM ${s}.${s}`);
      expect(await client.rows(`SELECT ${s} FROM ${s}.v`)).toEqual([[String(odd.indexOf(name))]]);
      const plain = name.replaceAll('""', '"');
      expect((await client.rows(`SHOW TABLES FROM ${s}`)).map((row) => row.slice(0, 2))).toEqual([[plain, 'ready']]);
      const columns = (await client.query(`SELECT * FROM ${s}.${s}`)).fields.map((field) => field.name);
      expect(columns).toEqual(odd.filter((other) => q(other) !== next).map((other) => other.replaceAll('""', '"')));
    }
    await origin.query(`UPDATE ${q(odd[0] ?? '')}.${q(odd[1] ?? '')} SET ${q(odd[1] ?? '')} = 77`);
    await eventually(client, `SELECT * FROM ${q(odd[1] ?? '')}.v`, [['77']]);
  }, 60_000);

  it('in SHOW CREATE, SWAP and DROP', async () => {
    for (const name of odd.slice(0, 6)) {
      const s = q(name);
      const source = `${s}.${`"s ${name}"`.replace(/"s x{63}"/, '"s x"')}`;
      const made: string[] = [];
      for (const what of [`CONNECTION ${s}.${s}`, `SOURCE ${source}`, `TABLE ${s}.${s}`, `MATERIALIZED VIEW ${s}.v`]) {
        made.push(String((await client.rows(`SHOW CREATE ${what}`))[0]?.[1]));
      }
      await client.query(`CREATE SCHEMA aside; ALTER SCHEMA ${s} SWAP WITH aside; ALTER SCHEMA aside SWAP WITH ${s}; DROP SCHEMA aside`);
      await client.query(`DROP MATERIALIZED VIEW ${s}.v; DROP TABLE ${s}.${s}; DROP SOURCE ${source}; DROP CONNECTION ${s}.${s}`);
      for (const sql of made) await client.query(sql);
      for (const [index, what] of [`CONNECTION ${s}.${s}`, `SOURCE ${source}`, `TABLE ${s}.${s}`, `MATERIALIZED VIEW ${s}.v`].entries()) {
        expect(String((await client.rows(`SHOW CREATE ${what}`))[0]?.[1])).toBe(made[index]);
      }
      expect((await client.failure(`DELETE FROM ${s}.${s}`)).startsWith('ERROR 25006: cannot write to table')).toBe(true);
      await client.query(`DROP SCHEMA ${s} CASCADE`);
    }
    await expect.poll(() => origin.rows('SELECT count(*)::int FROM pg_replication_slots')).toEqual([[0]]);
  }, 60_000);

  it('too long are cut as Postgres cuts them, and case is folded', async () => {
    const long = 'y'.repeat(70);
    await client.query('CREATE SCHEMA plain; SET search_path = plain');
    await client.query(`CREATE SECRET ${long} AS 'x'`);
    expect(await client.rows('SELECT name FROM millrace.secrets')).toEqual([['y'.repeat(63)]]);
    await client.query(`DROP SECRET ${long}`);
    await client.query("CREATE SECRET MiXeD AS 'x'; CREATE SECRET \"MiXeD\" AS 'y'");
    expect(await client.rows('SHOW SECRETS FROM plain')).toEqual([
      ['MiXeD', ''],
      ['mixed', ''],
    ]);
    await client.query('RESET search_path');
  });

  it('follow renames', async () => {
    await client.query(
      `CREATE CONNECTION c TO POSTGRES (${leadsTo(stage.origin)}); CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'Odd "Publication''')`,
    );
    await origin.query('CREATE TABLE r (a int PRIMARY KEY, b int); INSERT INTO r VALUES (1, 2)');
    await client.query(
      'CREATE SCHEMA old; CREATE TABLE old.t FROM SOURCE s (REFERENCE public.r); CREATE MATERIALIZED VIEW old.v AS SELECT b FROM old.t',
    );
    await client.query(
      'ALTER SCHEMA old RENAME TO new; ALTER VIEW new.t RENAME TO t2; ALTER VIEW s RENAME TO s2; ALTER VIEW new.t2 RENAME COLUMN b TO "B"',
    );
    expect(await client.rows('SHOW CREATE TABLE new.t2')).toEqual([
      ['new.t2', 'CREATE TABLE new.t2 FROM SOURCE public.s2 (REFERENCE public.r)'],
    ]);
    expect(await client.rows('SHOW CREATE MATERIALIZED VIEW new.v')).toEqual([['new.v', expect.stringContaining('FROM new.t2')]]);
    await origin.query('UPDATE r SET b = 3');
    await eventually(client, 'SELECT b FROM new.v', [[3]]);
    await client.query('CREATE MATERIALIZED VIEW new.v2 AS SELECT "B" + 1 AS c FROM new.t2');
    expect(await client.rows('SELECT c FROM new.v2')).toEqual([[4]]);
    await client.query('DROP SOURCE s2 CASCADE');
  });
});
