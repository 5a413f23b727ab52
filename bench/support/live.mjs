// A stream table that follows at once: how late it is, and what following it costs those who write.
import { writeFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { folder, median, pgbench, show } from './peers.mjs';

const seconds = Number(process.env.MILLRACE_BENCH_SECONDS ?? 10);
const rounds = Number(process.env.MILLRACE_BENCH_ROUNDS ?? 5);
const perSecond = Number(process.env.MILLRACE_BENCH_WRITES ?? 500);
const writers = 8;

/**
 * From a writer's commit (its answer has come) until a reader beside Millrace sees it. Every writer counts its own rows, and the view counts them too:
 * so each write is found again.
 */
export async function measureLive({ proxied, connect, server, millrace }) {
  await proxied.query('CREATE TABLE events (id bigserial PRIMARY KEY, writer integer NOT NULL, amount numeric(10,2) NOT NULL)');
  await proxied.query("SELECT pgtrickle.create_stream_table('live', $1, schedule => 'calculated')", [
    'SELECT writer, count(*) AS n, sum(amount) AS total FROM events GROUP BY writer',
  ]);
  const commits = Array.from({ length: writers }, () => []);
  const seen = Array.from({ length: writers }, () => 0);
  const late = [];
  const until = performance.now() + (seconds + 1) * 1000;
  const measureFrom = performance.now() + 1000;
  let writing = writers;

  const write = async (writer) => {
    const client = await connect(millrace.port);
    const every = (1000 * writers) / perSecond;
    let next = performance.now() + Math.random() * every;
    while (next < until) {
      const pause = next - performance.now();
      if (pause > 0.5) await sleep(pause);
      await client.query({ name: 'write', text: 'INSERT INTO events (writer, amount) VALUES ($1, 12.5)', values: [writer] });
      commits[writer].push(performance.now());
      next += every;
    }
    writing--;
  };
  const read = async () => {
    const reader = await connect(server.port);
    let polls = 0;
    const started = performance.now();
    while (writing > 0 || commits.some((of, writer) => seen[writer] < of.length)) {
      const { rows } = await reader.query({ name: 'read', text: 'SELECT writer, n::integer AS n FROM live', rowMode: 'array' });
      const now = performance.now();
      polls++;
      for (const [writer, n] of rows) {
        const of = commits[writer];
        // A commit whose answer is still on its way has been seen early.
        while (seen[writer] < Math.min(n, of.length)) {
          const at = of[seen[writer]++];
          if (at >= measureFrom) late.push(now - at);
        }
      }
      if (now > until + 20_000) throw new Error('what was written does not appear in the stream table');
      // The reader takes little of the machine.
      await sleep(1);
    }
    return (performance.now() - started) / polls;
  };
  const [pollMs] = await Promise.all([read(), ...Array.from({ length: writers }, (_, writer) => write(writer))]);
  late.sort((a, b) => a - b);
  const at = (share) => show(late[Math.floor(late.length * share)], 1);
  console.log(
    `commit to visible at ${perSecond} writes/s from ${writers} connections, ${late.length} writes: p50 ${at(0.5)} ms, p90 ${at(0.9)} ms, p99 ${at(0.99)} ms, ` +
      `most ${show(late.at(-1), 1)} ms (polled every ${show(pollMs, 1)} ms)`,
  );
  await proxied.query("SELECT pgtrickle.drop_stream_table('live')");
}

/** pgbench on the server itself, with nothing captured, with changes captured, and with an aggregate that follows at once. */
export async function measureWriters({ proxied, direct, server }) {
  await direct.query(`
    CREATE TABLE accounts (id integer PRIMARY KEY, branch integer NOT NULL, balance integer NOT NULL, filler char(84) NOT NULL DEFAULT '');
    CREATE TABLE history (account integer, branch integer, delta integer, at timestamptz);
    INSERT INTO accounts SELECT i, i % 100, 0 FROM generate_series(1, 100000) i`);
  await direct.query('VACUUM ANALYZE accounts');
  const script = `${folder('writers')}/write.sql`;
  writeFileSync(
    script,
    `\\set id random(1, 100000)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE accounts SET balance = balance + :delta WHERE id = :id;
INSERT INTO history VALUES (:id, :id % 100, :delta, now());
END;
`,
  );
  const query = 'SELECT branch, count(*) AS n, sum(balance) AS total FROM accounts GROUP BY branch';
  const contenders = { 'nothing captured': null, 'captured, refreshed hourly': '1h', 'refreshed at once': 'calculated' };
  const loads = [
    { clients: 4, rate: null },
    { clients: 4, rate: perSecond },
  ];
  console.log(`\nupdate and insert in a transaction, pgbench on the server, ${rounds} rounds of ${seconds} s, medians\n`);
  console.log(
    `| clients | rate | ${Object.keys(contenders)
      .map((name) => `${name}, tps | p99 ms`)
      .join(' | ')} | captured / not | at once / not |`,
  );
  console.log('|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|');
  for (const { clients, rate } of loads) {
    const seen = Object.fromEntries(Object.keys(contenders).map((name) => [name, { tps: [], p99: [] }]));
    for (let round = 0; round < rounds; round++) {
      for (const [name, schedule] of Object.entries(contenders)) {
        if (schedule !== null) {
          await proxied.query("SELECT pgtrickle.create_stream_table('branches', $1, schedule => $2)", [query, schedule]);
        }
        const args = ['-f', script, ...(rate === null ? [] : ['-R', String(rate)])];
        const { tps, p99 } = await pgbench(server.port, { mode: 'prepared', clients, seconds, args, latencies: true });
        seen[name].tps.push(tps);
        seen[name].p99.push(p99);
        if (schedule !== null) await proxied.query("SELECT pgtrickle.drop_stream_table('branches')");
        await direct.query('TRUNCATE history');
        await direct.query('VACUUM accounts');
      }
    }
    const [none, captured, atOnce] = Object.values(seen).map(({ tps, p99 }) => ({ tps: median(tps), p99: median(p99) }));
    const cells = [none, captured, atOnce].flatMap(({ tps, p99 }) => [show(tps), show(p99, 2)]);
    console.log(`| ${[clients, rate ?? 'any', ...cells, show(captured.tps / none.tps, 2), show(atOnce.tps / none.tps, 2)].join(' | ')} |`);
  }
}
