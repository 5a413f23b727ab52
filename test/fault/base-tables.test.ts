/**
 * Stream tables over ordinary tables while eight writers use savepoints, rollbacks and two-phase commits, and the engine is killed again and again:
 * at every instant the stream tables show one state of the tables, and when it is quiet the present one.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startEngine, type TestEngine } from '../support/engine.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { createStream, followsQuery, installCatalog, sortedRows, streamReady } from '../support/streams.ts';

const rounds = Number(process.env['MILLRACE_KILL_ROUNDS'] ?? 6);
const writers = 8;

const streams: Readonly<Record<string, string>> = {
  by_branch: 'SELECT branch, count(*) AS n, sum(balance) AS total, min(balance) AS low FROM account GROUP BY branch',
  overall: 'SELECT count(*) AS n, sum(balance) AS total FROM account',
  moved: 'SELECT a.branch, sum(h.delta) AS moved, count(*) AS times FROM history h JOIN account a ON a.id = h.account GROUP BY a.branch',
  in_debt: 'SELECT a.id, a.balance, h.id AS entry FROM account a JOIN history h ON h.account = a.id WHERE a.balance < -50 AND h.delta > 90',
  // Rebuilt by difference, in the same epochs as its inputs.
  doubled: 'SELECT x.branch, x.total, m.moved FROM by_branch x JOIN moved m ON m.branch = x.branch',
};

describe.each(['logical', 'replica'])('with wal_level %s', (level) => {
  let upstream: TestPostgres;
  let client: pg.Client;
  let engine: TestEngine;

  beforeAll(async () => {
    upstream = await startPostgres({ settings: { wal_level: level, max_prepared_transactions: '50', max_connections: '60' } });
    client = new pg.Client({ connectionString: upstream.url });
    await client.connect();
    await installCatalog(client);
    await client.query(`CREATE TABLE account (id integer PRIMARY KEY, branch integer, balance bigint NOT NULL);
    CREATE TABLE history (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account integer, delta bigint);
    INSERT INTO account SELECT g, g % 7, 0 FROM generate_series(1, 200) g`);
    engine = startEngine(upstream.address);
    for (const [name, query] of Object.entries(streams)) await streamReady(client, await createStream(client, name, query));
  }, 120_000);

  afterAll(async () => {
    await engine?.stop();
    await client?.end();
    await upstream?.stop();
  });

  /** Transfers between accounts: every transaction keeps the sum of balances at 0 and equal to the sum of history. */
  async function writer(number: number, going: () => boolean): Promise<number> {
    const own = new pg.Client({ connectionString: upstream.url });
    await own.connect();
    const pick = (n: number): number => Math.floor(Math.random() * n);
    let committed = 0;
    try {
      while (going()) {
        // Writers keep to accounts of their own, so that they never wait for each other's prepared transactions.
        const [from, to] = [1 + number + writers * pick(25), 1 + number + writers * pick(25)];
        const delta = pick(100);
        const transfer = `UPDATE account SET balance = balance - ${delta} WHERE id = ${from}; UPDATE account SET balance = balance + ${delta} WHERE id = ${to};
        INSERT INTO history (account, delta) VALUES (${from}, ${-delta}), (${to}, ${delta})`;
        const kind = pick(10);
        if (kind < 4) await own.query(`BEGIN; ${transfer}; COMMIT`);
        else if (kind < 6) {
          await own.query(`BEGIN; SAVEPOINT a; UPDATE account SET balance = 7 WHERE id = ${from}; DELETE FROM history WHERE account = ${to};
          ROLLBACK TO a; SAVEPOINT b; ${transfer}; RELEASE b; COMMIT`);
        } else if (kind < 7) {
          await own.query(`BEGIN; ${transfer}; UPDATE account SET branch = (branch + 1) % 7 WHERE id = ${to}; ROLLBACK`);
        } else if (kind < 9) {
          const name = `w${number}_${committed}_${pick(1e9)}`;
          await own.query(`BEGIN; ${transfer}; PREPARE TRANSACTION '${name}'`);
          await sleep(pick(20));
          await own.query(pick(5) === 0 ? `ROLLBACK PREPARED '${name}'` : `COMMIT PREPARED '${name}'`);
        } else {
          await own.query(`BEGIN; ${transfer}; UPDATE account SET branch = (branch + 1) % 7 WHERE id = ${from}`);
          await sleep(pick(30));
          await own.query('COMMIT');
        }
        committed++;
      }
    } finally {
      await own.end();
    }
    return committed;
  }

  /** What no state of the tables can show. */
  async function contradictions(): Promise<string[]> {
    const found = await client.query(`SELECT
    (SELECT sum(total) FROM by_branch) AS branches, (SELECT total FROM overall) AS total, (SELECT n FROM overall) AS n, (SELECT sum(n) FROM by_branch) AS m,
    (SELECT coalesce(sum(moved), 0) FROM moved) AS moved,
    (SELECT count(*) FROM by_branch b JOIN moved v USING (branch) WHERE NOT EXISTS
       (SELECT FROM doubled d WHERE d.branch = b.branch AND d.total = b.total AND d.moved = v.moved)) AS apart`);
    const row = found.rows[0] as Record<string, string>;
    const wanted: Record<string, string> = { branches: '0', total: '0', n: '200', m: '200', moved: '0', apart: '0' };
    return Object.entries(wanted).flatMap(([name, value]) => (String(row[name]) === value ? [] : [`${name} is ${row[name]}`]));
  }

  test(`one state at every instant, the present one when it is quiet (${rounds} rounds)`, async () => {
    let transactions = 0;
    for (let round = 0; round < rounds; round++) {
      let going = true;
      const working = Promise.all(Array.from({ length: writers }, (_, i) => writer(i, () => going)));
      working.catch(() => undefined);
      const until = performance.now() + 700 + Math.random() * 1500;
      while (performance.now() < until) {
        expect(await contradictions()).toEqual([]);
        await sleep(5);
      }
      if (round % 4 !== 3) await engine.restart();
      await sleep(Math.random() * 500);
      expect(await contradictions()).toEqual([]);
      going = false;
      transactions += (await working).reduce((sum, count) => sum + count, 0);
      for (const [name, query] of Object.entries(streams)) await followsQuery(client, name, query, 30_000);
      expect(await contradictions()).toEqual([]);
    }
    expect(transactions).toBeGreaterThan(rounds * writers);
    expect(
      (await client.query('SELECT relation_id FROM millrace.stream_table WHERE delta_lost IS NOT NULL OR consecutive_errors > 0')).rows,
    ).toEqual([]);
    // What is cheaper may be computed as a whole; nothing has to be because changes were missed.
    const rebuilt = await client.query("SELECT reason FROM millrace.refresh_history WHERE action = 'FULL' AND reason NOT LIKE 'cost:%'");
    expect(rebuilt.rows).toEqual([]);
    console.log(
      `${transactions} transactions, ${(await sortedRows(client, "SELECT count(*) FROM millrace.refresh_history WHERE action = 'DIFFERENTIAL'"))[0]} refreshes`,
    );
  }, 300_000);
});
