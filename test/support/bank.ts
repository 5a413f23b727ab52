/**
 * Load on an origin that has an invariant any snapshot can be asked for: TPC-B's transaction, and beside it writes of the awkward kinds.
 * Invariant: each transaction keeps the sums of accounts, tellers, branches and history equal.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

const accounts = 5000;

export const bankSchema = `
CREATE TABLE branches (bid integer PRIMARY KEY, bbalance bigint NOT NULL, filler text);
CREATE TABLE tellers (tid integer PRIMARY KEY, bid integer NOT NULL, tbalance bigint NOT NULL, filler text);
CREATE TABLE accounts (aid integer PRIMARY KEY, bid integer NOT NULL, abalance bigint NOT NULL, filler char(20));
CREATE TABLE history (tid integer, bid integer, aid integer, delta integer, mtime timestamptz);
CREATE TABLE entry (kind integer, label text);
CREATE TABLE note (id integer PRIMARY KEY, kind integer, body text);
ALTER TABLE note ALTER body SET STORAGE EXTERNAL;
ALTER TABLE history REPLICA IDENTITY FULL;
ALTER TABLE entry REPLICA IDENTITY FULL;
INSERT INTO branches SELECT g, 0, 'branch' FROM generate_series(1, 4) g;
INSERT INTO tellers SELECT g, 1 + g % 4, 0, NULL FROM generate_series(1, 20) g;
INSERT INTO accounts SELECT g, 1 + g % 4, 0, 'account ' || g FROM generate_series(1, ${accounts}) g;
INSERT INTO entry SELECT g % 9, 'label ' || g % 30 FROM generate_series(1, 500) g;
INSERT INTO note SELECT g, g % 9, repeat('n', 3000) FROM generate_series(1, 200) g`;

export const bankTables = ['branches', 'tellers', 'accounts', 'history', 'entry', 'note'] as const;

/** View name -> its query; `{s}` is the schema of the tables. */
export const bankViews: Readonly<Record<string, string>> = {
  by_branch: 'SELECT bid, count(*) AS n, sum(abalance) AS total, avg(abalance) AS mean FROM {s}.accounts GROUP BY bid',
  extremes: 'SELECT bid, min(abalance) AS low, max(abalance) AS high FROM {s}.accounts GROUP BY bid',
  in_debt:
    'SELECT a.aid, a.abalance, t.tid FROM {s}.accounts a JOIN {s}.tellers t ON t.bid = a.bid AND t.tid % 5 = 0 WHERE a.abalance < -2000',
  moved:
    'SELECT h.bid, t.tid, sum(h.delta) AS moved, count(*) AS times FROM {s}.history h JOIN {s}.tellers t ON t.tid = h.tid GROUP BY h.bid, t.tid',
  large: 'SELECT tid, aid, delta FROM {s}.history WHERE delta > 4900',
  kinds: 'SELECT e.kind, count(*) AS entries, max(e.label) AS last FROM {s}.entry e GROUP BY e.kind',
  noted:
    "SELECT n.id, n.kind, length(n.body) AS size, e.label FROM {s}.note n LEFT JOIN {s}.entry e ON e.kind = n.kind AND e.label LIKE '%7'",
  overall: 'SELECT count(*) AS n, sum(delta) AS total FROM {s}.history',
};

/** One row, all of its columns equal in every state the bank is ever in. */
export const bankSums = `SELECT (SELECT sum(abalance) FROM {s}.accounts), (SELECT sum(tbalance) FROM {s}.tellers),
  (SELECT sum(bbalance) FROM {s}.branches), (SELECT coalesce(sum(delta), 0) FROM {s}.history)`;

const script = `\\set aid random(1, ${accounts})
\\set bid random(1, 4)
\\set tid random(1, 20)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM accounts WHERE aid = :aid;
UPDATE tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
`;

export interface BankLoad {
  /** Ends the writers; resolves with the number of transactions they made. Rejects when a writer has failed. */
  stop(): Promise<number>;
}

interface Target {
  readonly host: string;
  readonly port: number;
  readonly url: string;
}

export interface LoadOptions {
  /** TPC-B transactions a second, all writers together; undefined: as many as they can. */
  readonly rate?: number;
  /** Errors of a server that is being restarted are waited out. */
  readonly patient?: boolean;
}

/** Four writers of TPC-B transactions (pgbench where there is one) and one of other writes. */
export function startBankLoad(origin: Target, options: LoadOptions = {}): BankLoad {
  let going = true;
  const writers = [awkwardWriter(origin, () => going, options)];
  if (options.patient !== true && spawnSync('pgbench', ['--version']).status === 0) writers.push(pgbench(origin, () => going, options));
  else for (let i = 0; i < 4; i++) writers.push(tpcbWriter(origin, () => going, options));
  const all = Promise.all(writers);
  // Reported by stop().
  all.catch(() => undefined);
  return {
    stop: async () => {
      going = false;
      return (await all).reduce((sum, count) => sum + count, 0);
    },
  };
}

/** Runs in slices of a few seconds, so that it ends soon when it is told to. */
async function pgbench(origin: Target, going: () => boolean, options: LoadOptions): Promise<number> {
  const home = mkdtempSync(join(tmpdir(), 'millrace-bank-'));
  const file = join(home, 'tpcb.sql');
  writeFileSync(file, script);
  let count = 0;
  try {
    while (going()) {
      const rate = options.rate === undefined ? [] : ['-R', String(options.rate)];
      const flags = ['-n', '-c', '4', '-T', '2', '-f', file, ...rate, '-h', origin.host, '-p', String(origin.port), '-U', 'postgres'];
      const output = await outputOf(spawn('pgbench', [...flags, 'postgres'], { stdio: ['ignore', 'pipe', 'pipe'] }));
      const processed = /actually processed: (\d+)/.exec(output);
      if (processed === null) throw new Error(`pgbench failed:\n${output}`);
      count += Number(processed[1]);
    }
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
  return count;
}

function outputOf(child: ChildProcess): Promise<string> {
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream?.setEncoding('utf8').on('data', (chunk: string) => {
      output += chunk;
    });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', () => resolve(output));
  });
}

const pick = (from: number, to: number): number => from + Math.floor(Math.random() * (to - from + 1));

/** Calls `work` with a connection until the load ends; when patient, a lost connection is replaced. Answers how often it succeeded. */
async function writer(
  origin: Target,
  going: () => boolean,
  options: LoadOptions,
  pauseMs: number,
  work: (client: pg.Client, turn: number) => Promise<unknown>,
): Promise<number> {
  let count = 0;
  let client: pg.Client | undefined;
  while (going()) {
    try {
      if (client === undefined) {
        client = new pg.Client({ connectionString: origin.url });
        client.on('error', () => undefined);
        await client.connect();
      }
      await work(client, count);
      count++;
    } catch (error) {
      if (options.patient !== true) throw error;
      client?.end().catch(() => undefined);
      client = undefined;
      await sleep(50);
    }
    if (pauseMs > 0) await sleep(pauseMs);
  }
  await client?.end();
  return count;
}

function tpcbWriter(origin: Target, going: () => boolean, options: LoadOptions): Promise<number> {
  return writer(origin, going, options, options.rate === undefined ? 0 : 4000 / options.rate, (client) => {
    const [aid, bid, tid, delta] = [pick(1, accounts), pick(1, 4), pick(1, 20), pick(-5000, 5000)];
    return client.query(
      `BEGIN; UPDATE accounts SET abalance = abalance + ${delta} WHERE aid = ${aid}; UPDATE tellers SET tbalance = tbalance + ${delta} WHERE tid = ${tid};
       UPDATE branches SET bbalance = bbalance + ${delta} WHERE bid = ${bid};
       INSERT INTO history VALUES (${tid}, ${bid}, ${aid}, ${delta}, clock_timestamp()); COMMIT`,
    );
  });
}

/** Duplicates, moved keys, values left out, savepoints, rollbacks, TRUNCATE, and now and then a few thousand rows at once. */
function awkwardWriter(origin: Target, going: () => boolean, options: LoadOptions): Promise<number> {
  return writer(origin, going, options, 20, (client, turn) => {
    const kind = pick(0, 8);
    const id = pick(1, 200);
    const works = [
      `INSERT INTO entry SELECT ${kind}, 'label ' || g % 3 FROM generate_series(1, 4) g`,
      `DELETE FROM entry WHERE ctid IN (SELECT ctid FROM entry WHERE kind = ${kind} LIMIT 4)`,
      `UPDATE entry SET label = 'label ' || ${pick(1, 30)} WHERE ctid IN (SELECT ctid FROM entry WHERE kind = ${kind} LIMIT 2)`,
      `UPDATE note SET kind = ${kind} WHERE id = ${id}`,
      `UPDATE note SET id = id + 1000 WHERE id = ${id} AND NOT EXISTS (SELECT FROM note WHERE id = ${id + 1000})`,
      `UPDATE note SET id = id - 1000, kind = kind + 1 WHERE id = ${id + 1000} AND NOT EXISTS (SELECT FROM note WHERE id = ${id})`,
      `DELETE FROM note WHERE id = ${id}`,
      `INSERT INTO note VALUES (${id}, ${kind}, repeat('m', ${pick(1, 5000)})) ON CONFLICT (id) DO UPDATE SET body = excluded.body`,
      `BEGIN; UPDATE note SET kind = 0; SAVEPOINT a; DELETE FROM entry; ROLLBACK TO a; INSERT INTO entry VALUES (${kind}, NULL); COMMIT`,
      'BEGIN; DELETE FROM note; DELETE FROM accounts; ROLLBACK',
      turn % 200 === 10 ? 'TRUNCATE entry' : 'SELECT 1',
      turn % 50 === 11 ? "UPDATE accounts SET filler = 'turn ' || (abalance % 7)" : 'SELECT 1',
    ];
    return client.query(works[turn % works.length] ?? 'SELECT 1');
  });
}

/** Statements that set up the source, its tables and the views in schema `live`. */
export function bankStatements(origin: Target): string[] {
  return [
    `CREATE CONNECTION bank TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`,
    "CREATE SOURCE bank FROM POSTGRES CONNECTION bank (PUBLICATION 'p')",
    'CREATE SCHEMA live',
    ...bankTables.map((table) => `CREATE TABLE live.${table} FROM SOURCE bank (REFERENCE public.${table})`),
    ...Object.entries(bankViews).map(([name, query]) => `CREATE MATERIALIZED VIEW live.${name} AS ${query.replaceAll('{s}', 'live')}`),
    'CREATE MATERIALIZED VIEW live.over_view AS SELECT count(*) AS n, sum(moved) AS total FROM live.moved',
  ];
}

/** In one snapshot: what does not hold there; empty when all does. */
export async function bankProblems(client: pg.Client): Promise<string[]> {
  const problems: string[] = [];
  await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
  try {
    const sums = await client.query<string[]>({ text: bankSums.replaceAll('{s}', 'live'), rowMode: 'array' });
    if (new Set(sums.rows[0]).size !== 1) problems.push(`sums differ: ${sums.rows[0]?.join(', ')}`);
    const pairs = [...Object.entries(bankViews), ['over_view', 'SELECT count(*), sum(moved) FROM {s}.moved'] as const];
    for (const [name, text] of pairs) {
      const query = text.replaceAll('{s}', 'live');
      const found = await client.query<{ row: string }>(
        `(SELECT '+' || v::text AS row FROM (SELECT * FROM live.${name} EXCEPT ALL (${query})) v LIMIT 3)
         UNION ALL (SELECT '-' || v::text FROM ((${query}) EXCEPT ALL SELECT * FROM live.${name}) v LIMIT 3)`,
      );
      if (found.rows.length > 0) problems.push(`${name}: ${found.rows.map(({ row }) => row).join(' ')}`);
    }
  } finally {
    await client.query('ROLLBACK');
  }
  return problems;
}

/** Tables and views whose contents differ from the origin's own answer. */
export async function bankDifferences(live: pg.Client, origin: pg.Client): Promise<string[]> {
  const differences: string[] = [];
  const pairs: (readonly [string, string])[] = [
    ...bankTables.map((table) => [table, `SELECT * FROM {s}.${table}`] as const),
    ...Object.entries(bankViews),
  ];
  for (const [name, query] of pairs) {
    const digest = (from: string): string =>
      `SELECT count(*) || ' rows, digest ' || coalesce(sum(hashtextextended(t::text, 0)), 0) AS digest FROM (${from}) t`;
    await live.query('SET timezone = UTC');
    await origin.query('SET timezone = UTC');
    const [found, wanted] = await Promise.all([
      live.query<{ digest: string }>(digest(`SELECT * FROM live.${name}`)),
      origin.query<{ digest: string }>(digest(query.replaceAll('{s}', 'public'))),
    ]);
    if (found.rows[0]?.digest !== wanted.rows[0]?.digest)
      differences.push(`${name}: ${found.rows[0]?.digest}, at the origin ${wanted.rows[0]?.digest}`);
  }
  return differences;
}
