// Stream tables through a whole Millrace, on the server's own tables: what a refresh costs its caller against computing the query anew.
//   e2e   pg_trickle's own benchmark: 100,000 rows, 1, 10 and 50 % of them changed, nine queries
//   tpch  the 22 queries of TPC-H over 1 % and 0.01 % of new, deleted and changed orders
//   live  commit to visible of an aggregate under 500 writes a second, and what the capture costs writers
//   npm run bench ivm     MILLRACE_BENCH_ONLY=e2e,tpch,live  MILLRACE_BENCH_CYCLES=5  MILLRACE_BENCH_QUERIES=join,q05
//                         MILLRACE_BENCH_ROWS=100000  MILLRACE_BENCH_CHANGES=1,10,50  MILLRACE_BENCH_TPCH=0.1 (1: 150,000 orders)
// FULL is TRUNCATE and INSERT of the query into a plain table, in one transaction on the same server. After every cycle both are compared.
// "after commit" is what the caller waits who asks right after the change: decoding of the WAL is in it. "decoded": the change had been decoded before,
// as it has with any schedule. "view" is the time of the view's own statements, as the history of refreshes has it.

import { measureLive, measureWriters } from './support/live.mjs';
import { cleanUp, median, show } from './support/peers.mjs';
import { changeRows, createRows, queries as rowQueries } from './support/region-rows.mjs';
import { createBoth, cycles, dropBoth, refresh, startStage, timed } from './support/streams.mjs';
import { changeOrders, createTpch } from './support/tpch/data.mjs';
import { queries as tpchQueries } from './support/tpch/queries.mjs';

const env = process.env;
const only = env.MILLRACE_BENCH_ONLY?.split(',');
const wanted = (work) => only === undefined || only.includes(work);
const named = env.MILLRACE_BENCH_QUERIES?.split(',');
/** Some of these names are words of SQL. */
const chosen = (queries) =>
  Object.entries(queries).flatMap(([name, query]) => (named === undefined || named.includes(name) ? [[`st_${name}`, query]] : []));
const shown = (name) => name.slice('st_'.length);
const measured = Number(env.MILLRACE_BENCH_CYCLES ?? 5);
const rows = Number(env.MILLRACE_BENCH_ROWS ?? 100_000);
const shares = (env.MILLRACE_BENCH_CHANGES ?? '1,10,50').split(',').map(Number);
const scale = Number(env.MILLRACE_BENCH_TPCH ?? 0.1);

/** A stage for the time of `work`. */
async function onStage(work, settings) {
  const stage = await startStage(settings);
  try {
    await work(stage);
  } finally {
    await stage.end();
    await cleanUp();
  }
}

const e2e = () =>
  onStage(async (stage) => {
    await createRows(stage.direct, rows);
    console.log(`\nsrc of ${rows} rows, medians of ${measured} cycles\n`);
    console.log(`| query | way | changed | ${columns} | done |\n|---|---|--:|${columns.replaceAll(/[^|]+/g, '--:')}|---|`);
    for (const [name, query] of chosen(rowQueries)) {
      const { way, reason } = await createBoth(stage, name, query);
      const empty = [];
      for (let i = -20; i < 20; i++) {
        const time = await refresh(stage, name);
        if (i >= 0) empty.push(time);
      }
      console.log(
        `| ${shown(name)} | ${way} | 0 % | – | ${show(median(empty), 1)} | – | – | – | – | – | ${way === 'full' ? reason : 'NO_DATA'} |`,
      );
      for (const share of shares) {
        const change = () => changeRows(stage.direct, (rows * share) / 100);
        const result = await cycles(stage, { name, query, change, warmUp: 2, measured });
        console.log(`| ${[shown(name), way, `${share} %`, ...timesOf(result), result.actions].join(' | ')} |`);
      }
      await dropBoth(stage, name);
    }
  });

const tpch = () =>
  onStage(async (stage) => {
    const size = await createTpch(stage.direct, scale);
    console.log(
      `\nTPC-H, ${size.orders} orders; each batch: so many new, so many deleted, so many changed orders; medians of ${measured} cycles\n`,
    );
    console.log(`| q | way | changed | ${columns} | done |\n|---|---|--:|${columns.replaceAll(/[^|]+/g, '--:')}|---|`);
    const sums = new Map();
    for (const [name, query] of chosen(tpchQueries)) {
      const { way } = await createBoth(stage, name, query);
      for (const share of [1, 0.01]) {
        const change = () => changeOrders(stage.direct, size, share / 100);
        const result = await cycles(stage, { name, query, change, warmUp: 1, measured });
        console.log(`| ${[shown(name), way, `${share} %`, ...timesOf(result), result.actions].join(' | ')} |`);
        const sum = sums.get(share) ?? { refreshMs: 0, decodedMs: 0, viewMs: 0, fullMs: 0 };
        for (const key of Object.keys(sum)) sum[key] += result[key];
        sums.set(share, sum);
      }
      await dropBoth(stage, name);
    }
    for (const [share, sum] of sums) console.log(`| Σ | | ${share} % | ${timesOf(sum).join(' | ')} | |`);
    await together(stage, size);
  });

/** All of them at once, refreshed by one statement. */
async function together(stage, size) {
  const names = chosen(tpchQueries).map(([name]) => name);
  for (const [name, query] of chosen(tpchQueries)) await createBoth(stage, name, query);
  for (const share of [1, 0.01]) {
    const times = [];
    for (let cycle = -1; cycle < measured; cycle++) {
      await changeOrders(stage.direct, size, share / 100);
      const time = await timed(() => stage.proxied.query('SELECT pgtrickle.refresh_stream_table(n) FROM unnest($1::text[]) n', [names]));
      if (cycle >= 0) times.push(time);
    }
    console.log(`all ${names.length} by one statement, ${share} %: ${show(median(times), 1)} ms`);
  }
}

const columns = 'FULL ms | after commit ms | decoded ms | view ms | FULL / after commit | FULL / decoded | FULL / view';
const timesOf = ({ fullMs, ...refreshes }) => {
  const ways = [refreshes.refreshMs, refreshes.decodedMs, refreshes.viewMs];
  return [...[fullMs, ...ways].map((ms) => show(ms, 1)), ...ways.map((ms) => `${show(fullMs / ms, 1)}×`)];
};

const live = () =>
  onStage(async (stage) => {
    await measureLive(stage);
    await measureWriters(stage);
  });

for (const [name, work] of Object.entries({ e2e, tpch, live })) {
  if (!wanted(name)) continue;
  console.log(`\n--- ${name}`);
  try {
    await work();
  } finally {
    await cleanUp();
  }
}
