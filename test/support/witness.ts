/**
 * Writers beside a migration, and a witness: every transaction also appends to a ledger what each row it wrote is after it.
 * Each writer has rows of its own, so the last entry of a row is what has to be there. Old applications know the table `people` with its moved columns,
 * new ones the table without them and `people_mail`; each goes through Millrace or straight to the upstream.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

export interface WitnessOptions {
  /** Where this writer connects. */
  readonly url: string;
  readonly shape: 'old' | 'new';
  /** Number of the writer: its rows are those with id % writers = number. */
  readonly number: number;
  /** search_path of new applications. */
  readonly newVersion: string;
  /** Two-phase commits too. */
  readonly prepares?: boolean;
}

export const writers = 8;

export const witnessTables = `
CREATE TABLE people (
    id       bigint PRIMARY KEY,
    name     text NOT NULL,
    balance  integer NOT NULL DEFAULT 0,
    email    text UNIQUE,
    verified timestamptz,
    note     text,
    shouted  text GENERATED ALWAYS AS (upper(name)) STORED
);
CREATE TABLE ledger (
    entry  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    writer integer NOT NULL,
    n      bigint NOT NULL,
    id     bigint NOT NULL,
    state  jsonb
);`;

/** What must be the same on both sides, when nobody writes. `people`: the relation that shows the old shape. */
export const witnessQuery = (people: string): string => `
WITH last AS (SELECT DISTINCT ON (id) id, state FROM ledger ORDER BY id, n DESC),
     wanted AS (SELECT id, state ->> 'name' AS name, (state ->> 'balance')::integer AS balance, state ->> 'email' AS email,
                       (state ->> 'verified')::timestamptz AS verified, md5(state ->> 'note') AS note, upper(state ->> 'name') AS shouted
                  FROM last WHERE state IS NOT NULL),
     found AS (SELECT id, name, balance, email, verified, md5(note) AS note, shouted FROM ${people})
SELECT 'missing' AS what, x::text AS row FROM (SELECT * FROM wanted EXCEPT ALL SELECT * FROM found) x
UNION ALL
SELECT 'not written', x::text FROM (SELECT * FROM found EXCEPT ALL SELECT * FROM wanted) x LIMIT 20`;

interface Person {
  readonly id: number;
  name: string;
  balance: number;
  email: string | null;
  verified: string | null;
  note: string | null;
}

export interface Witness {
  /** Transactions that have committed. */
  readonly committed: number;
  /** Errors that an undisturbed run would not have. */
  readonly errors: readonly string[];
  /** 40001, which old applications may see after the cutover, and were run again. */
  readonly again: number;
  /** Longest time one statement took, in ms, since the last call. */
  longestMs(): number;
  pause(): Promise<void>;
  resume(): void;
  stop(): Promise<void>;
}

/** Lost with its server or its Millrace: whether it committed is read from the ledger. */
const connectionCodes = new Set(['57P01', '57P02', '57P03', '08006', '08001', '08003', 'ECONNRESET', 'ECONNREFUSED', 'EPIPE']);

export function startWitness(options: WitnessOptions): Witness {
  const people = new Map<number, Person>();
  const errors: string[] = [];
  let n = 0;
  let committed = 0;
  let again = 0;
  let going = true;
  let paused = false;
  let idle = false;
  let longest = 0;
  let client: pg.Client | null = null;
  let nextId = 0;
  const pick = (below: number): number => Math.floor(Math.random() * below);
  const freshId = (): number => options.number + writers * ++nextId;

  const connect = async (): Promise<pg.Client> => {
    const fresh = new pg.Client({ connectionString: options.url });
    fresh.on('error', () => undefined);
    await fresh.connect();
    if (options.shape === 'new') await fresh.query(`SET search_path = ${options.newVersion}, public`);
    // Which of our transactions have committed is what the ledger says.
    const known = await fresh.query<{ id: string; n: string; state: Person | null }>(
      'SELECT DISTINCT ON (id) id, n, state FROM ledger WHERE writer = $1 ORDER BY id, n DESC',
      [options.number],
    );
    people.clear();
    for (const row of known.rows) {
      n = Math.max(n, Number(row.n));
      nextId = Math.max(nextId, Math.floor(Number(row.id) / writers));
      if (row.state !== null) people.set(Number(row.id), { ...row.state, id: Number(row.id) });
    }
    return fresh;
  };

  const timed = async (on: pg.Client, sql: string, params: unknown[] = []): Promise<pg.QueryResult> => {
    const began = performance.now();
    try {
      return await on.query(sql, params);
    } finally {
      longest = Math.max(longest, performance.now() - began);
    }
  };

  /** One transaction: its statements, and its entries in the ledger. */
  const transaction = async (on: pg.Client): Promise<void> => {
    const draft = new Map([...people].map(([id, person]) => [id, { ...person }]));
    const touched = new Set<number>();
    const run = (sql: string, params: unknown[]): Promise<pg.QueryResult> => timed(on, sql, params);
    const one = async (sql: string, params: unknown[]): Promise<void> => {
      const { rowCount } = await run(sql, params);
      if (rowCount !== 1) throw new Error(`${rowCount} rows instead of one: ${sql} ${JSON.stringify(params)}`);
    };
    await on.query('BEGIN');
    const steps = 1 + pick(3);
    for (let i = 0; i < steps; i++) {
      const rolledBack = pick(8) === 0;
      if (rolledBack) await on.query('SAVEPOINT s');
      const before = rolledBack ? new Map([...draft].map(([id, person]) => [id, { ...person }])) : null;
      const was = new Set(touched);
      await (options.shape === 'old' ? oldStep : newStep)(one, run, draft, touched);
      if (before !== null) {
        await on.query('ROLLBACK TO s');
        draft.clear();
        for (const [id, person] of before) draft.set(id, person);
        touched.clear();
        for (const id of was) touched.add(id);
      }
    }
    for (const id of touched) {
      await on.query('INSERT INTO public.ledger (writer, n, id, state) VALUES ($1, $2, $3, $4)', [
        options.number,
        ++n,
        id,
        draft.has(id) ? JSON.stringify(draft.get(id)) : null,
      ]);
    }
    if (options.prepares === true && pick(10) === 0) {
      const name = `w${options.number}_${n}_${pick(1e9)}`;
      await on.query(`PREPARE TRANSACTION '${name}'`);
      await sleep(pick(20));
      const commits = pick(4) !== 0;
      await on.query(`${commits ? 'COMMIT' : 'ROLLBACK'} PREPARED '${name}'`);
      if (!commits) return;
    } else await timed(on, 'COMMIT');
    people.clear();
    for (const [id, person] of draft) people.set(id, person);
    committed++;
  };

  type Step = (
    one: (sql: string, params: unknown[]) => Promise<void>,
    run: (sql: string, params: unknown[]) => Promise<pg.QueryResult>,
    draft: Map<number, Person>,
    touched: Set<number>,
  ) => Promise<void>;

  const some = (draft: Map<number, Person>): Person | undefined => [...draft.values()][pick(draft.size)];
  const mail = (id: number): string => `m${id}-${pick(1e9)}@example.org`;
  const time = (): string => new Date(1_700_000_000_000 + pick(1e9)).toISOString();
  const bigNote = (): string => Array.from({ length: 400 }, () => Math.random().toString(36)).join('');

  const oldStep: Step = async (one, run, draft, touched) => {
    const kind = draft.size < 5 ? 0 : pick(12);
    const person = some(draft);
    if (kind <= 2 || person === undefined) {
      const id = freshId();
      const fresh: Person = {
        id,
        name: `p${id}`,
        balance: 0,
        email: pick(3) === 0 ? null : mail(id),
        verified: null,
        note: pick(4) === 0 ? bigNote() : null,
      };
      draft.set(id, fresh);
      touched.add(id);
      return await one('INSERT INTO public.people (id, name, email, note) VALUES ($1, $2, $3, $4) RETURNING shouted', [
        id,
        fresh.name,
        fresh.email,
        fresh.note,
      ]);
    }
    const { id } = person;
    touched.add(id);
    switch (kind) {
      case 3:
      case 4:
        person.email = mail(id);
        return await one('UPDATE public.people SET email = $2 WHERE id = $1', [id, person.email]);
      case 5:
        person.email = null;
        return await one('UPDATE public.people SET email = NULL WHERE id = $1', [id]);
      case 6:
        person.balance += 3;
        return await one('UPDATE public.people SET balance = balance + 3 WHERE id = $1', [id]);
      case 7:
        person.verified = time();
        person.name = `q${pick(1e6)}`;
        return await one('UPDATE public.people SET verified = $2, name = $3 WHERE id = $1', [id, person.verified, person.name]);
      case 8:
        draft.delete(id);
        return await one('DELETE FROM public.people WHERE id = $1', [id]);
      case 9: {
        await one('DELETE FROM public.people WHERE id = $1', [id]);
        const back: Person = { id, name: 'back', balance: 1, email: mail(id), verified: time(), note: null };
        draft.set(id, back);
        return await one('INSERT INTO public.people (id, name, balance, email, verified) VALUES ($1, $2, 1, $3, $4)', [
          id,
          back.name,
          back.email,
          back.verified,
        ]);
      }
      case 10: {
        const moved = freshId();
        draft.delete(id);
        draft.set(moved, { ...person, id: moved });
        touched.add(moved);
        return await one('UPDATE public.people SET id = $2 WHERE id = $1', [id, moved]);
      }
      default: {
        // Many rows at once; also of none.
        const ids = [...draft.keys()].filter(() => pick(2) === 0).slice(0, 20);
        for (const each of ids) {
          const one_ = draft.get(each);
          if (one_ !== undefined) one_.verified = null;
          touched.add(each);
        }
        await run('UPDATE public.people SET verified = NULL WHERE id = ANY ($1)', [ids]);
        return;
      }
    }
  };

  const newStep: Step = async (one, run, draft, touched) => {
    const kind = draft.size < 5 ? 0 : pick(10);
    const person = some(draft);
    if (kind <= 2 || person === undefined) {
      const id = freshId();
      const fresh: Person = {
        id,
        name: `n${id}`,
        balance: 0,
        email: pick(3) === 0 ? null : mail(id),
        verified: null,
        note: pick(4) === 0 ? bigNote() : null,
      };
      draft.set(id, fresh);
      touched.add(id);
      await one('INSERT INTO people (id, name, note) VALUES ($1, $2, $3)', [id, fresh.name, fresh.note]);
      if (fresh.email !== null) await one('INSERT INTO people_mail (person_id, email) VALUES ($1, $2)', [id, fresh.email]);
      return;
    }
    const { id } = person;
    const present = person.email !== null || person.verified !== null;
    touched.add(id);
    switch (kind) {
      case 3:
      case 4:
        person.email = mail(id);
        return present
          ? await one('UPDATE people_mail SET email = $2 WHERE person_id = $1', [id, person.email])
          : await one('INSERT INTO people_mail (person_id, email) VALUES ($1, $2)', [id, person.email]);
      case 5:
        if (!present) return;
        person.email = null;
        person.verified = null;
        return await one('DELETE FROM people_mail WHERE person_id = $1', [id]);
      case 6:
        person.balance += 5;
        return await one('UPDATE people SET balance = balance + 5 WHERE id = $1', [id]);
      case 7:
        if (!present) return;
        person.verified = time();
        return await one('UPDATE people_mail SET verified = $2 WHERE person_id = $1', [id, person.verified]);
      case 8:
        draft.delete(id);
        return await one('DELETE FROM people WHERE id = $1', [id]);
      default: {
        const ids = [...draft.values()].filter(({ email }) => email !== null && pick(2) === 0).slice(0, 20);
        const at = time();
        for (const each of ids) {
          each.verified = at;
          touched.add(each.id);
        }
        await run('UPDATE people_mail SET verified = $2 WHERE person_id = ANY ($1)', [ids.map((each) => each.id), at]);
        return;
      }
    }
  };

  const work = (async () => {
    while (going) {
      if (paused) {
        idle = true;
        await sleep(5);
        continue;
      }
      idle = false;
      try {
        client ??= await connect();
        await transaction(client);
      } catch (error) {
        const code = error instanceof Error && 'code' in error ? String(error.code) : '';
        const message = error instanceof Error ? error.message : String(error);
        if (code === '40001') {
          again++;
          await client?.query('ROLLBACK').catch(() => undefined);
          continue;
        }
        const lost = connectionCodes.has(code) || /terminated|closed|ended/i.test(message);
        if (!lost) {
          errors.push(`${options.shape} ${code}: ${message}`);
          if (errors.length > 20) going = false;
        }
        await client?.end().catch(() => undefined);
        client = null;
        await sleep(50);
      }
    }
    idle = true;
    await client?.end().catch(() => undefined);
  })();

  return {
    get committed() {
      return committed;
    },
    errors,
    get again() {
      return again;
    },
    longestMs: () => {
      const was = longest;
      longest = 0;
      return was;
    },
    pause: async () => {
      paused = true;
      while (!idle) await sleep(2);
    },
    resume: () => {
      paused = false;
      idle = false;
    },
    stop: async () => {
      going = false;
      await work;
    },
  };
}
