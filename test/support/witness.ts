/**
 * Writers beside a migration, and a witness: every transaction also appends to a ledger what each row it wrote is after it.
 * Each writer has rows of its own, so the last entry of a row is what has to be there. Old applications know the old shape, new ones the new one;
 * each goes through Millrace or straight to the upstream. What they write is said by a workload (witness-people.ts, witness-items.ts).
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

export type Shape = 'old' | 'new';

/** What a step of a transaction works with. */
export interface Tools<Row> {
  /** Number of the writer. */
  readonly number: number;
  /** The writer's rows as its transaction sees them, by their key as text. Whoever changes one says `touch`. */
  readonly draft: Map<string, Row>;
  touch(key: string): void;
  run(sql: string, params?: readonly unknown[]): Promise<pg.QueryResult>;
  /** Has to write, or find, exactly one row. */
  one(sql: string, params: readonly unknown[]): Promise<pg.QueryResult>;
  /** A number that no row of any writer has had. */
  fresh(): number;
  /** Whether a name is a table. It stays what it is to the end of the transaction. */
  isTable(name: string): Promise<boolean>;
}

/** One step of a transaction in one shape. */
export type Step<Row> = (tools: Tools<Row>) => Promise<void>;

export interface WitnessOptions<Row> {
  /** Where this writer connects. */
  readonly url: string;
  /** Number of the writer. */
  readonly number: number;
  readonly searchPath: string;
  readonly step: Step<Row>;
  /** Two-phase commits too. */
  readonly prepares?: boolean;
  /** Transactions that have begun to write long before they come to the tables, and stay open long after. */
  readonly slow?: boolean;
}

export interface Witness {
  /** Transactions that have committed. */
  readonly committed: number;
  /** Errors that an undisturbed run would not have. */
  readonly errors: readonly string[];
  /** 40001, which old applications may see after the cutover, and were run again. */
  readonly again: number;
  /** Resolves between two transactions. */
  pause(): Promise<void>;
  /** `reread`: somebody else has written rows of this writer, and said so in the ledger. */
  resume(reread?: 'reread'): void;
  stop(): Promise<void>;
}

export const writers = 8;

export const ledgerTable = `
CREATE TABLE ledger (
    entry  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    writer integer NOT NULL,
    n      bigint NOT NULL,
    id     text NOT NULL,
    state  jsonb
);`;

/** The last entry of every row. */
export const lastEntries = 'SELECT DISTINCT ON (id) writer, n, id, state FROM public.ledger ORDER BY id, n DESC';

/** Rows of either query that are not in the other, as often as there. `wanted` reads `last`: entries of rows that have to be there. */
export const comparison = (wanted: string, found: string): string => `
WITH last AS (SELECT * FROM (${lastEntries}) x WHERE state IS NOT NULL), wanted AS (${wanted}), found AS (${found})
SELECT 'missing' AS what, x::text AS row FROM (SELECT * FROM wanted EXCEPT ALL SELECT * FROM found) x
UNION ALL
SELECT 'not written', x::text FROM (SELECT * FROM found EXCEPT ALL SELECT * FROM wanted) x LIMIT 20`;

/** In a transaction that deletes all rows: says so in the ledger. */
export const nothingLeft = `INSERT INTO public.ledger (writer, n, id, state) SELECT writer, n + 1, id, NULL FROM (${lastEntries}) x WHERE state IS NOT NULL`;

export const pick = (below: number): number => Math.floor(Math.random() * below);
export const someOf = <T>(list: Iterable<T>): T | undefined => {
  const all = [...list];
  return all[pick(all.length)];
};
/** A value that is stored out of line. */
export const bigText = (): string => Array.from({ length: 400 }, () => Math.random().toString(36)).join('');

/** Lost with its server or its Millrace: whether it committed is read from the ledger. */
export const connectionCodes = new Set(['57P01', '57P02', '57P03', '08006', '08001', '08003', 'ECONNRESET', 'ECONNREFUSED', 'EPIPE']);

export function startWitness<Row extends object>(options: WitnessOptions<Row>): Witness {
  const { number } = options;
  const rows = new Map<string, Row>();
  const errors: string[] = [];
  let n = 0;
  let committed = 0;
  let again = 0;
  let going = true;
  let paused = false;
  let idle = false;
  let client: pg.Client | null = null;
  let serial = 0;

  /** Which of our transactions have committed is what the ledger says. */
  const connect = async (): Promise<pg.Client> => {
    const fresh = new pg.Client({ connectionString: options.url });
    fresh.on('error', () => undefined);
    try {
      await fresh.connect();
      await fresh.query(`SET search_path = ${options.searchPath}`);
      // What was prepared when the connection broke is not known to be wanted.
      const prepared = await fresh.query<{ gid: string }>("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'w' || $1 || '\\_%'", [number]);
      for (const { gid } of prepared.rows) await fresh.query(`ROLLBACK PREPARED '${gid}'`);
      await endFormer(fresh);
      const known = await fresh.query<{ n: string; id: string; state: Row | null }>(
        `SELECT n, id, state FROM (${lastEntries}) x WHERE writer = $1`,
        [number],
      );
      rows.clear();
      for (const row of known.rows) {
        n = Math.max(n, Number(row.n));
        if (row.state !== null) rows.set(row.id, row.state);
      }
      return fresh;
    } catch (error) {
      await fresh.end().catch(() => undefined);
      throw error;
    }
  };

  /** The session that was lost may still be at its COMMIT. */
  const endFormer = async (fresh: pg.Client): Promise<void> => {
    const own = "application_name = 'witness ' || $1 AND pid <> pg_backend_pid()";
    while ((await fresh.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE ${own}`, [number])).rowCount !== 0)
      await sleep(5);
    await fresh.query(`SET application_name = 'witness ${number}'`);
  };

  /** One transaction: its statements, and its entries in the ledger. */
  const transaction = async (on: pg.Client): Promise<void> => {
    let draft = new Map([...rows].map(([key, row]) => [key, { ...row }]));
    let touched = new Set<string>();
    const run: Tools<Row>['run'] = (sql, params = []) => on.query(sql, [...params]);
    const tools = (): Tools<Row> => ({
      number,
      draft,
      touch: (key) => touched.add(key),
      run,
      one: async (sql, params) => {
        const result = await run(sql, params);
        if (result.rowCount !== 1) throw new Error(`${result.rowCount} rows instead of one: ${sql} ${JSON.stringify(params)}`);
        return result;
      },
      fresh: () => number + writers * ++serial,
      isTable: async (name) => {
        await on.query(`SELECT FROM ${name} LIMIT 0`);
        return (
          (await on.query('SELECT FROM pg_class WHERE oid = to_regclass($1) AND relkind IN ($2, $3)', [name, 'r', 'p'])).rowCount === 1
        );
      },
    });
    await on.query('BEGIN');
    if (options.slow === true) {
      await on.query('SELECT pg_current_xact_id()');
      await sleep(pick(500));
    }
    const steps = options.slow === true ? 1 : 1 + pick(3);
    for (let i = 0; i < steps; i++) {
      const rolledBack = pick(8) === 0;
      const before = { draft: new Map([...draft].map(([key, row]) => [key, { ...row }])), touched: new Set(touched) };
      if (rolledBack) await on.query('SAVEPOINT s');
      await options.step(tools());
      if (!rolledBack) continue;
      await on.query('ROLLBACK TO s');
      ({ draft, touched } = before);
    }
    const keys = [...touched];
    await on.query(
      'INSERT INTO public.ledger (writer, n, id, state) SELECT $1, $2::bigint + x.i, x.id, x.state::jsonb FROM unnest($3::text[], $4::text[]) WITH ORDINALITY x(id, state, i)',
      [number, n, keys, keys.map((key) => (draft.has(key) ? JSON.stringify(draft.get(key)) : null))],
    );
    n += keys.length;
    if (options.slow === true) await sleep(pick(100));
    if (options.prepares === true && pick(10) === 0) {
      const name = `w${number}_${n}_${pick(1e9)}`;
      await on.query(`PREPARE TRANSACTION '${name}'`);
      await sleep(pick(20));
      const commits = pick(4) !== 0;
      await on.query(`${commits ? 'COMMIT' : 'ROLLBACK'} PREPARED '${name}'`);
      if (!commits) return;
    } else await on.query('COMMIT');
    rows.clear();
    for (const [key, row] of draft) rows.set(key, row);
    committed++;
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
        // So long transactions must leave room for others.
        if (options.slow === true) await sleep(500 + pick(1000));
      } catch (error) {
        const code = error instanceof Error && 'code' in error ? String(error.code) : '';
        const message = error instanceof Error ? error.message : String(error);
        if (code === '40001') {
          again++;
          await client?.query('ROLLBACK').catch(() => undefined);
          continue;
        }
        const lost = connectionCodes.has(code) || /terminated|closed|ended|connection error/i.test(message);
        if (!lost) {
          errors.push(`writer ${number} (${options.searchPath}) ${code}: ${message}`);
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
    pause: async () => {
      paused = true;
      while (!idle) await sleep(2);
    },
    resume: (reread) => {
      if (reread === 'reread') {
        void client?.end().catch(() => undefined);
        client = null;
      }
      paused = false;
      idle = false;
    },
    stop: async () => {
      going = false;
      await work;
    },
  };
}
