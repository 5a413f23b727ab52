// Stream tables as a user has them: made and refreshed by SQL through Millrace, against TRUNCATE and INSERT of the query on the same server.
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { median, startMillrace, startPostgres } from './peers.mjs';

/** A server, a whole Millrace before it, one client through it and one beside it. */
export async function startStage(settings = {}) {
  const server = await startPostgres({ jit: 'off', max_wal_size: '4GB', work_mem: '64MB', shared_buffers: '512MB', ...settings });
  const millrace = await startMillrace(server.port);
  const clients = [];
  const connect = async (port) => {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', password: 'bench', database: 'postgres' });
    client.on('error', () => undefined);
    await client.connect();
    clients.push(client);
    return client;
  };
  return {
    server,
    millrace,
    connect,
    proxied: await connect(millrace.port),
    direct: await connect(server.port),
    end: () => Promise.all(clients.map((client) => client.end().catch(() => undefined))),
  };
}

export async function timed(work) {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/** Makes the stream table and a plain table of the same rows. Answers how it is refreshed, and why. */
export async function createBoth({ proxied, direct }, name, query, schedule = '1h') {
  await proxied.query('SELECT pgtrickle.create_stream_table(name => $1, query => $2, schedule => $3)', [name, query, schedule]);
  await direct.query(`CREATE TABLE ${name}_full AS ${query}`);
  const { rows } = await proxied.query('SELECT property, value FROM pgtrickle.explain_st($1)', [name]);
  const of = Object.fromEntries(rows.map(({ property, value }) => [property, value]));
  return { way: of.refresh_mode === 'FULL' ? 'full' : of.way, reason: of.downgrade_reason ?? of.reason };
}

export async function dropBoth({ proxied, direct }, name) {
  await proxied.query('SELECT pgtrickle.drop_stream_table($1)', [name]);
  await direct.query(`DROP TABLE ${name}_full`);
}

/** Milliseconds the caller waits. */
export const refresh = ({ proxied }, name) => timed(() => proxied.query('SELECT pgtrickle.refresh_stream_table($1)', [name]));

/** Milliseconds to compute the plain table anew in one transaction. */
export const full = ({ direct }, name, query) =>
  timed(async () => {
    await direct.query('BEGIN');
    await direct.query(`TRUNCATE ${name}_full`);
    await direct.query(`INSERT INTO ${name}_full ${query}`);
    await direct.query('COMMIT');
  });

/** What the engine says of the last refresh; `ms` is the time of the view's own statements. */
export async function lastRefresh({ direct }, name) {
  const { rows } = await direct.query(
    `SELECT action, reason, extract(epoch FROM ended_at - started_at)::float8 * 1000 AS ms
       FROM millrace.refresh_history WHERE relation_id = millrace.stream_table_named($1) ORDER BY refresh_id DESC LIMIT 1`,
    [name],
  );
  return rows[0];
}

/** The stream table, the plain table and the query are the same rows. To be called when nothing has changed since `refresh` and `full`. */
export async function requireSame({ direct }, name) {
  const { rows } = await direct.query(
    `SELECT (SELECT count(*) FROM (TABLE ${name} EXCEPT ALL TABLE ${name}_full) x)::int AS more,
            (SELECT count(*) FROM (TABLE ${name}_full EXCEPT ALL TABLE ${name}) x)::int AS less`,
  );
  const [{ more, less }] = rows;
  if (more + less > 0) throw new Error(`${name}: ${more} rows too many, ${less} missing`);
}

/** Waits until the engine has been sent, and has decoded, what has been committed so far. */
export async function decoded({ direct }) {
  const { rows } = await direct.query("SELECT pg_logical_emit_message(true, 'bench', '') AS lsn");
  const { lsn } = rows[0];
  for (;;) {
    const { rows: found } = await direct.query(
      "SELECT bool_and(sent_lsn >= $1::pg_lsn) AS sent FROM pg_stat_replication WHERE application_name LIKE 'millrace millrace_base%'",
      [lsn],
    );
    if (found[0].sent === true) break;
    await sleep(5);
  }
  await sleep(50);
}

/**
 * Times of cycles: change, refresh, FULL, compare. By turns the refresh comes right after the commit, which includes decoding, and when the
 * changes have been decoded, as they have with any schedule. The first `warmUp` of each are not counted.
 */
export async function cycles(stage, { name, query, change, warmUp, measured }) {
  const times = { refresh: [], decoded: [], view: [], full: [] };
  const actions = new Set();
  for (let cycle = -2 * warmUp; cycle < 2 * measured; cycle++) {
    const waits = cycle % 2 !== 0;
    await change();
    if (waits) await decoded(stage);
    const refreshed = await refresh(stage, name);
    const computed = await full(stage, name, query);
    await requireSame(stage, name);
    const last = await lastRefresh(stage, name);
    if (cycle < 0) continue;
    (waits ? times.decoded : times.refresh).push(refreshed);
    times.full.push(computed);
    times.view.push(last.ms);
    actions.add(last.action === 'FULL' ? `FULL (${last.reason.split(':')[0]})` : last.action);
  }
  const [refreshMs, decodedMs, viewMs, fullMs] = [times.refresh, times.decoded, times.view, times.full].map(median);
  return { refreshMs, decodedMs, viewMs, fullMs, actions: [...actions].join(', ') };
}
