/** Writers of people, whose mail moves to a table of its own: rows of every kind, one by one and thousands at once. */
import { bigText, comparison, ledgerTable, pick, type Shape, type Step, someOf, type Tools } from './witness.ts';

/** `partitioned`: by the key, and nothing else can be unique then. */
export const peopleTables = ({ partitioned }: { readonly partitioned: boolean }): string => `
CREATE TABLE people (
    id       bigint PRIMARY KEY,
    name     text NOT NULL,
    balance  integer NOT NULL DEFAULT 0,
    email    text${partitioned ? '' : ' UNIQUE'},
    verified timestamptz,
    profile  text,
    note     text,
    shouted  text GENERATED ALWAYS AS (upper(name)) STORED
)${partitioned ? ' PARTITION BY HASH (id)' : ''};
${partitioned ? [0, 1, 2].map((i) => `CREATE TABLE people_${i} PARTITION OF people FOR VALUES WITH (MODULUS 3, REMAINDER ${i});`).join('\n') : ''}
${ledgerTable}`;

const wanted = `SELECT (state ->> 'id')::bigint AS id, state ->> 'name' AS name, (state ->> 'balance')::integer AS balance, state ->> 'email' AS email,
       (state ->> 'verified')::timestamptz AS verified, md5(state ->> 'profile') AS profile, md5(state ->> 'note') AS note, upper(state ->> 'name') AS shouted FROM last`;

/** What must be the same on both sides, when nobody writes. `people`: a relation that has the old shape. */
export const peopleQuery = (people: string): string =>
  comparison(wanted, `SELECT id, name, balance, email, verified, md5(profile) AS profile, md5(note) AS note, shouted FROM ${people}`);

/** The old shape, made of the new one. */
export const peopleJoined =
  '(SELECT p.*, m.email, m.verified, m.profile FROM public.people p LEFT JOIN public.people_mail m ON m.person_id = p.id) x';

interface Person {
  id: number;
  name: string;
  balance: number;
  email: string | null;
  verified: string | null;
  profile: string | null;
  note: string | null;
}

const mail = (id: number): string => `m${id}-${pick(1e9)}@example.org`;
const time = (): string => new Date(1_700_000_000_000 + pick(1e9)).toISOString();
const hasMail = ({ email, verified, profile }: Person): boolean => email !== null || verified !== null || profile !== null;

function newPerson(id: number): Person {
  return {
    ...{ id, name: `p${id}`, balance: 0, email: pick(3) === 0 ? null : mail(id), verified: null },
    profile: pick(4) === 0 ? bigText() : null,
    note: pick(4) === 0 ? bigText() : null,
  };
}

const keep = ({ draft, touch }: Tools<Person>, person: Person): void => {
  draft.set(String(person.id), person);
  touch(String(person.id));
};

/** Of all steps: one row to begin with, which another step inserts where there are few. */
const stepOf =
  (kinds: number, insert: (tools: Tools<Person>, fresh: Person) => Promise<unknown>, others: Others): Step<Person> =>
  async (tools) => {
    const person = someOf(tools.draft.values());
    const kind = tools.draft.size < 5 ? 0 : pick(kinds);
    if (kind < 3 || person === undefined) {
      const fresh = newPerson(tools.fresh());
      keep(tools, fresh);
      await insert(tools, fresh);
      return;
    }
    tools.touch(String(person.id));
    await others(kind, tools, person);
  };

type Others = (kind: number, tools: Tools<Person>, person: Person) => Promise<unknown>;

const oldStep = stepOf(
  15,
  ({ one }, { id, name, email, profile, note }) =>
    one('INSERT INTO people (id, name, email, profile, note) VALUES ($1, $2, $3, $4, $5) RETURNING shouted', [
      id,
      name,
      email,
      profile,
      note,
    ]),
  async (kind, tools, person) => {
    const { draft, one, run } = tools;
    const { id } = person;
    switch (kind) {
      case 3:
        person.email = mail(id);
        return await one('UPDATE people SET email = $2 WHERE id = $1', [id, person.email]);
      case 4:
        person.profile = bigText();
        return await one('UPDATE people SET profile = $2 WHERE id = $1', [id, person.profile]);
      case 5:
        person.email = null;
        return await one('UPDATE people SET email = NULL WHERE id = $1', [id]);
      case 6:
        person.balance += 3;
        return await one('UPDATE people SET balance = balance + 3 WHERE id = $1', [id]);
      case 7:
        person.verified = time();
        person.name = `q${pick(1e6)}`;
        return await one('UPDATE people SET verified = $2, name = $3 WHERE id = $1', [id, person.verified, person.name]);
      case 8:
        draft.delete(String(id));
        return await one('DELETE FROM people WHERE id = $1', [id]);
      case 9: {
        await one('DELETE FROM people WHERE id = $1', [id]);
        const back: Person = { id, name: 'back', balance: 1, email: mail(id), verified: time(), profile: null, note: null };
        keep(tools, back);
        const values = [id, back.name, back.email, back.verified];
        return await one('INSERT INTO people (id, name, balance, email, verified) VALUES ($1, $2, 1, $3, $4)', values);
      }
      case 10: {
        const moved = tools.fresh();
        draft.delete(String(id));
        keep(tools, { ...person, id: moved });
        return await one('UPDATE people SET id = $2 WHERE id = $1', [id, moved]);
      }
      case 11:
      case 12:
        return await upsert(tools, kind === 11 ? person : newPerson(tools.fresh()));
      default: {
        // Many rows at once; also of none.
        const ids = [...draft.values()].filter(() => pick(2) === 0).slice(0, 20);
        for (const each of ids) {
          each.verified = null;
          keep(tools, each);
        }
        return await run('UPDATE people SET verified = NULL WHERE id = ANY ($1)', [ids.map((each) => each.id)]);
      }
    }
  },
);

/** One row that is there, or is not. Postgres does not take ON CONFLICT where the shape is a view with triggers. */
async function upsert(tools: Tools<Person>, person: Person): Promise<unknown> {
  const isNew = !tools.draft.has(String(person.id));
  person.email = mail(person.id);
  person.name = isNew ? 'upserted' : person.name;
  if (isNew) Object.assign(person, { balance: 0, profile: null, note: null });
  keep(tools, person);
  const values = [person.id, 'upserted', person.email];
  return (await tools.isTable('people'))
    ? await tools.one(
        'INSERT INTO people (id, name, email) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET email = excluded.email',
        values,
      )
    : await tools.one(
        `MERGE INTO people p USING (VALUES ($1::bigint, $2, $3)) v(id, name, email) ON p.id = v.id
         WHEN MATCHED THEN UPDATE SET email = v.email WHEN NOT MATCHED THEN INSERT (id, name, email) VALUES (v.id, v.name, v.email)`,
        values,
      );
}

const newStep = stepOf(
  13,
  async ({ one }, { id, name, email, profile, note }) => {
    await one('INSERT INTO people (id, name, note) VALUES ($1, $2, $3)', [id, name, note]);
    if (email !== null || profile !== null)
      await one('INSERT INTO people_mail (person_id, email, profile) VALUES ($1, $2, $3)', [id, email, profile]);
  },
  async (kind, tools, person) => {
    const { draft, one, run } = tools;
    const { id } = person;
    switch (kind) {
      case 3: {
        const was = hasMail(person);
        person.email = mail(id);
        return was
          ? await one('UPDATE people_mail SET email = $2 WHERE person_id = $1', [id, person.email])
          : await one('INSERT INTO people_mail (person_id, email) VALUES ($1, $2)', [id, person.email]);
      }
      case 4:
        if (!hasMail(person)) return;
        person.profile = bigText();
        return await one('UPDATE people_mail SET profile = $2 WHERE person_id = $1', [id, person.profile]);
      case 5:
        if (!hasMail(person)) return;
        Object.assign(person, { email: null, verified: null, profile: null });
        return await one('DELETE FROM people_mail WHERE person_id = $1', [id]);
      case 6:
        person.balance += 5;
        return await one('UPDATE people SET balance = balance + 5 WHERE id = $1', [id]);
      case 7:
        if (!hasMail(person)) return;
        person.verified = time();
        return await one('UPDATE people_mail SET verified = $2 WHERE person_id = $1', [id, person.verified]);
      case 8:
        draft.delete(String(id));
        return await one('DELETE FROM people WHERE id = $1', [id]);
      case 9: {
        person.balance += 7;
        const sql = 'INSERT INTO people (id, name) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET balance = people.balance + 7';
        return await one(sql, [id, person.name]);
      }
      case 10: {
        person.email = mail(id);
        const values = [id, person.email];
        const insert = 'INSERT INTO people_mail (person_id, email) VALUES ($1, $2)';
        if (await tools.isTable('people_mail'))
          return await one(`${insert} ON CONFLICT (person_id) DO UPDATE SET email = excluded.email`, values);
        const updated = await run('UPDATE people_mail SET email = $2 WHERE person_id = $1', values);
        return updated.rowCount === 0 ? await one(insert, values) : undefined;
      }
      default: {
        const ids = [...draft.values()].filter(({ email }) => email !== null && pick(2) === 0).slice(0, 20);
        const at = time();
        for (const each of ids) {
          each.verified = at;
          keep(tools, each);
        }
        return await run('UPDATE people_mail SET verified = $2 WHERE person_id = ANY ($1)', [ids.map((each) => each.id), at]);
      }
    }
  },
);

export const peopleStep = (shape: Shape): Step<Person> => (shape === 'old' ? oldStep : newStep);

/** So many rows in one transaction of an old application: made, written again, and deleted. */
export const bulkPeople =
  (rows: number): Step<Person> =>
  async (tools) => {
    const { draft, run } = tools;
    if (draft.size === 0) {
      const fresh = Array.from({ length: rows }, (): Person => {
        const id = tools.fresh();
        return { id, name: `b${id}`, balance: 0, email: mail(id), verified: null, profile: null, note: null };
      });
      for (const person of fresh) keep(tools, person);
      await run('INSERT INTO people (id, name, email) SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[])', [
        fresh.map(({ id }) => id),
        fresh.map(({ name }) => name),
        fresh.map(({ email }) => email),
      ]);
      return;
    }
    const ids = [...draft.values()].map(({ id }) => id);
    const deletes = pick(2) === 0;
    for (const person of [...draft.values()]) {
      keep(tools, { ...person, email: null, verified: null, balance: person.balance + 1 });
      if (deletes) draft.delete(String(person.id));
    }
    await run(
      deletes
        ? 'DELETE FROM people WHERE id = ANY ($1)'
        : 'UPDATE people SET email = NULL, verified = NULL, balance = balance + 1 WHERE id = ANY ($1)',
      [ids],
    );
  };
