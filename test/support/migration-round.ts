/** What rounds of migrations beside writers share: a server, Millrace before it, what is said to it and how it stands. */
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import { expect } from 'vitest';
import { startMillrace, type TestMillrace } from './millrace.ts';
import { withClient } from './one-client.ts';
import { startPostgres, type TestPostgres } from './postgres.ts';
import { connectionCodes, nothingLeft, type Witness } from './witness.ts';

export interface Round {
  readonly upstream: TestPostgres;
  readonly millrace: TestMillrace;
  /** On a session of its own, straight to the upstream. */
  ask(sql: string, searchPath?: string): Promise<Record<string, unknown>[]>;
  /** Through Millrace; answers the notices. */
  say(sql: string): Promise<string[]>;
  /** The migration's row. */
  state(): Promise<Record<string, unknown>>;
  until(phase: string): Promise<void>;
  /**
   * Everybody stops, and what is there is compared with the ledger: both ways, in every shape; and what follows with what is followed. `shapes`: queries of
   * what differs, and the search path for each. No row may ever have had to be repaired, unless changes were lost with their slot.
   */
  check(witnesses: readonly Witness[], shapes: readonly (readonly [searchPath: string, query: string])[]): Promise<void>;
  /** Everybody stops, and all rows go at once. */
  truncate(witnesses: readonly Witness[], table: string): Promise<void>;
  stop(): Promise<void>;
}

export async function startRound(migration: string): Promise<Round> {
  const upstream = await startPostgres({ settings: { wal_level: 'logical', max_prepared_transactions: '50', max_connections: '80' } });
  const millrace = await startMillrace({ upstream: upstream.address });
  /** Again while the server is not there: what is said is asked for only once it is. */
  const on: typeof withClient = async (url, work) => {
    for (const end = Date.now() + 30_000; ; await sleep(50)) {
      try {
        return await withClient(url, work);
      } catch (error) {
        const code = error instanceof Error && 'code' in error ? String(error.code) : '';
        if (!connectionCodes.has(code) || Date.now() > end) throw error;
      }
    }
  };
  const ask: Round['ask'] = (sql, searchPath = 'public') =>
    on(upstream.url, async (client) => {
      await client.query(`SET search_path = ${searchPath}`);
      const result: unknown = await client.query(sql);
      return (result as pg.QueryResult).rows;
    });
  const say: Round['say'] = (sql) =>
    on(millrace.url(), async (client) => {
      const notices: string[] = [];
      client.on('notice', (notice) => notices.push(notice.message ?? ''));
      await client.query(sql);
      return notices;
    });
  const state: Round['state'] = async () =>
    (await ask(`SELECT * FROM millrace.migrations WHERE name = '${migration}' ORDER BY id DESC LIMIT 1`))[0] ?? {};
  return {
    upstream,
    millrace,
    ask,
    say,
    state,
    async until(phase) {
      for (let i = 0; i < 4000; i++) {
        const now = await state();
        if (now['phase'] === phase && now['request'] === null) return;
        await sleep(20);
      }
      const activity = await ask(
        'SELECT pid, application_name, state, wait_event_type, wait_event, pg_blocking_pids(pid) AS blocked, left(query, 100) AS query, now() - xact_start AS open FROM pg_stat_activity WHERE datname = current_database()',
      );
      throw new Error(`never ${phase}: ${JSON.stringify([await state(), ...activity], null, 1)}\n${millrace.log().slice(-20000)}`);
    },
    async check(witnesses, shapes) {
      await Promise.all(witnesses.map((witness) => witness.pause()));
      expect(witnesses.flatMap((witness) => witness.errors)).toEqual([]);
      for (const [searchPath, query] of shapes) expect([searchPath, ...(await ask(query, searchPath))]).toEqual([searchPath]);
      const { phase } = await state();
      if (phase === 'ready' || phase === 'cut_over') {
        await say(`ALTER MIGRATION ${migration} VERIFY`);
        const said = millrace.log().split('\n');
        const found = said.filter((line) => /as they should be|goes on|cut over|reverted/.test(line)).join('\n');
        expect(await state(), found).toMatchObject({ differences: '0', repaired: '0' });
      }
      for (const witness of witnesses) witness.resume();
    },
    async truncate(witnesses, table) {
      await Promise.all(witnesses.map((witness) => witness.pause()));
      await ask(`BEGIN; TRUNCATE ${table}; ${nothingLeft}; COMMIT`);
      for (const witness of witnesses) witness.resume('reread');
    },
    async stop() {
      await millrace.stop();
      await upstream.stop();
    },
  };
}
