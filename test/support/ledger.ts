/**
 * Transfers between accounts, each with its line in a ledger: a load of which every state can be told from a wrong one by looking at that state alone.
 * Invariant: each transaction keeps the sum of balances 0 and appends the next number to its writer's ledger, and the balances are those of the ledgers.
 * The ledger has no key, so that a line that came twice would stand there twice.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

const accounts = 300;
const bulk = 22_000;
const writers = 3;

export const ledgerSchema = `
CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE ledger (writer integer, n bigint, giver integer, taker integer, amount bigint);
CREATE TABLE bulk (id integer PRIMARY KEY, v integer);
CREATE TABLE pair (id integer PRIMARY KEY, n bigint);
CREATE TABLE wide (id integer PRIMARY KEY, a integer, b integer);
INSERT INTO account SELECT g, 0 FROM generate_series(1, ${accounts}) g;
INSERT INTO bulk SELECT g, 0 FROM generate_series(1, ${bulk}) g;
INSERT INTO pair SELECT g, 0 FROM generate_series(1, ${writers}) g;
INSERT INTO wide VALUES (1, 1, 1)`;

/** One transaction of more rows than are sent in one part. */
export const largeTransaction = 'UPDATE bulk SET v = v + 1';

const views: Readonly<Record<string, string>> = {
  by_writer: 'SELECT writer, count(*) AS n, sum(amount) AS total FROM live.ledger GROUP BY writer',
  taken:
    'SELECT a.id, a.balance, sum(l.amount) AS taken, count(*) AS times FROM live.ledger l JOIN live.account a ON a.id = l.taker GROUP BY a.id, a.balance',
  rich: 'SELECT id, balance FROM live.account WHERE balance > 100',
  bulks: 'SELECT v, count(*) AS n FROM live.bulk GROUP BY v',
};

interface Server {
  readonly host: string;
  readonly port: number;
  readonly url: string;
}

/** Statements that set up source `ledger`, its tables and views in schema `live`; the origin may be reached through a relay. */
export function ledgerStatements(origin: Pick<Server, 'host' | 'port'>): string[] {
  return [
    `CREATE CONNECTION ledger TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`,
    "CREATE SOURCE ledger FROM POSTGRES CONNECTION ledger (PUBLICATION 'p')",
    'CREATE SCHEMA live',
    ...['account', 'ledger', 'bulk'].map((table) => `CREATE TABLE live.${table} FROM SOURCE ledger (REFERENCE public.${table})`),
    ...Object.entries(views).map(([name, query]) => `CREATE MATERIALIZED VIEW live.${name} AS ${query}`),
  ];
}

export interface LedgerLoad {
  /** Ends the writers; answers how many transactions each has committed, by the number of its last line. */
  stop(): Promise<readonly number[]>;
}

/** Writers that make so many transactions a second together. `patient`: a server that is away is waited for. */
export function startLedgerLoad(origin: Server, rate: number, patient = false): LedgerLoad {
  let going = true;
  const all = Promise.all(
    Array.from({ length: writers }, (_, index) => ledgerWriter(origin, index + 1, (writers * 1000) / rate, patient, () => going)),
  );
  // Reported by stop().
  all.catch(() => undefined);
  return {
    stop: () => {
      going = false;
      return all;
    },
  };
}

async function ledgerWriter(origin: Server, writer: number, pauseMs: number, patient: boolean, going: () => boolean): Promise<number> {
  const pick = (): number => 1 + Math.floor(Math.random() * accounts);
  let client: pg.Client | null = null;
  let n = -1;
  while (going()) {
    try {
      if (client === null) {
        client = new pg.Client({ connectionString: origin.url });
        client.on('error', () => undefined);
        await client.connect();
        const last = await client.query<{ n: string }>('SELECT coalesce(max(n), 0) AS n FROM ledger WHERE writer = $1', [writer]);
        n = Number(last.rows[0]?.n);
      }
      const [giver, taker, amount] = [pick(), pick(), Math.floor(Math.random() * 50)];
      // In the order of their ids: no two writers wait for each other in a circle.
      const changes = [
        [giver, -amount],
        [taker, amount],
      ].sort(([a = 0], [b = 0]) => a - b);
      const updates = changes.map(([id, by]) => `UPDATE account SET balance = balance + ${by} WHERE id = ${id};`);
      await client.query(
        `BEGIN; ${updates.join(' ')} INSERT INTO ledger VALUES (${writer}, ${n + 1}, ${giver}, ${taker}, ${amount});
         UPDATE pair SET n = n + 1 WHERE id = ${writer}; COMMIT`,
      );
      n++;
    } catch (error) {
      if (!patient) throw error;
      client?.end().catch(() => undefined);
      client = null;
      await sleep(50);
    }
    await sleep(pauseMs);
  }
  await client?.end().catch(() => undefined);
  return n;
}

const differ = (name: string, query: string): string =>
  `SELECT 'view ${name}: ' || v::text FROM ((SELECT '-', * FROM (TABLE live.${name} EXCEPT ALL (${query})) x LIMIT 2)
     UNION ALL (SELECT '+', * FROM ((${query}) EXCEPT ALL TABLE live.${name}) y LIMIT 2)) v`;

/** What no state of the origin can show; one statement, one snapshot. */
const problemsSql = [
  "SELECT 'the sum of balances is ' || sum(balance) FROM live.account HAVING sum(balance) <> 0",
  "SELECT 'the ledger of writer ' || writer || ' has ' || count(*) || ' lines, ' || count(DISTINCT n) || ' numbers up to ' || max(n) FROM live.ledger GROUP BY writer HAVING count(*) <> max(n) OR count(DISTINCT n) <> max(n)",
  `SELECT 'account ' || a.id || ' has ' || a.balance || ', its ledger says ' || coalesce(m.amount, 0) FROM live.account a
     LEFT JOIN (SELECT id, sum(amount) AS amount FROM (SELECT taker AS id, amount FROM live.ledger UNION ALL SELECT giver, -amount FROM live.ledger) l GROUP BY id) m USING (id)
    WHERE a.balance <> coalesce(m.amount, 0)`,
  `SELECT 'a large transaction shows in part: ' || count(*) || ' rows, ' || count(DISTINCT v) || ' values' FROM live.bulk HAVING count(*) <> ${bulk} OR count(DISTINCT v) <> 1`,
  ...Object.entries(views).map(([name, query]) => differ(name, query)),
]
  .map((sql) => `(${sql})`)
  .join('\nUNION ALL ');

export async function ledgerProblems(client: pg.Client): Promise<string[]> {
  const found = await client.query<[string]>({ text: problemsSql, rowMode: 'array' });
  return found.rows.map(([problem]) => problem);
}

/** How far the copy is: lines of the ledger. May never become fewer. */
export async function ledgerLines(client: pg.Client): Promise<number> {
  const found = await client.query<{ n: string }>('SELECT coalesce(sum(n), 0) AS n FROM live.by_writer');
  return Number(found.rows[0]?.n);
}

/** Tables that are not as at the origin. */
export async function ledgerDifferences(live: pg.Client, origin: pg.Client): Promise<string[]> {
  const differences: string[] = [];
  for (const table of ['account', 'ledger', 'bulk']) {
    const digest = (schema: string): string =>
      `SELECT count(*) || ' rows, digest ' || coalesce(sum(hashtextextended(t::text, 0)), 0) AS digest FROM ${schema}.${table} t`;
    const [found, wanted] = [await live.query(digest('live')), await origin.query(digest('public'))];
    if (found.rows[0]?.digest !== wanted.rows[0]?.digest)
      differences.push(`${table}: ${found.rows[0]?.digest}, at the origin ${wanted.rows[0]?.digest}`);
  }
  return differences;
}
