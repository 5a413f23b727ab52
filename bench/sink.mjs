/**
 * Sinks into a local Kafka broker, beside the broker's own producer-perf in the same run: a snapshot, changes as fast as they come, how late a change
 * is, and how long a cutover takes. Everything, the broker too, runs on this machine.
 * MILLRACE_BENCH_ROWS (1,000,000), MILLRACE_BENCH_SECONDS (20), MILLRACE_BENCH_RATE (changes a second, 50,000), MILLRACE_BENCH_ROUNDS (3),
 * MILLRACE_BENCH_ONLY=perf,snapshot,cutover,lateness,changes.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { runnerImport } from 'vite';
import { connectKafka } from '../dist/sinks/kafka/client.js';
import { endOffset, readCommitted } from '../dist/sinks/kafka/reader.js';
import { openTransport } from '../dist/sinks/kafka/transport.js';
import { cleanUp, median, show, startMillrace, startPostgres } from './support/peers.mjs';

const rows = Number(process.env.MILLRACE_BENCH_ROWS ?? 1_000_000);
const seconds = Number(process.env.MILLRACE_BENCH_SECONDS ?? 20);
const rate = Number(process.env.MILLRACE_BENCH_RATE ?? 50_000);
const rounds = Number(process.env.MILLRACE_BENCH_ROUNDS ?? 3);
const only = process.env.MILLRACE_BENCH_ONLY?.split(',');
const wanted = (name) => only === undefined || only.includes(name);

const { module: kafkaSupport } = await runnerImport(new URL('../test/support/kafka.ts', import.meta.url).pathname);
const kafka = await kafkaSupport.startKafka({ own: true, fast: true, settings: { 'num.partitions': '4' } });
if ('skipped' in kafka) {
  console.log(`sink: SKIPPED, ${kafka.skipped}`);
  process.exit(0);
}
try {
  await run();
} finally {
  await cleanUp();
  await kafka.stop();
}

async function run() {
  const [broker] = kafka.brokers;
  // A server each, as in life: what the upstream writes is not for the origin to decode.
  const origin = await startPostgres({ wal_level: 'logical', max_wal_size: '8GB' });
  const upstream = await startPostgres({ wal_level: 'logical', max_wal_size: '8GB' });
  const millrace = await startMillrace(upstream.port);
  const connect = async (port, database = 'postgres') => {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', password: 'bench', database });
    await client.connect();
    return client;
  };
  const admin = await connect(origin.port);
  await admin.query('CREATE DATABASE shop');
  const shop = await connect(origin.port, 'shop');
  const inside = await connect(upstream.port);
  const client = await connect(millrace.port);
  await shop.query(`
    CREATE TABLE item (id integer PRIMARY KEY, name text NOT NULL, price numeric(10,2) NOT NULL, stock integer NOT NULL, changed timestamptz NOT NULL DEFAULT now(), note text);
    INSERT INTO item SELECT g, 'item ' || g, g % 1000, g % 100, now(), repeat('n', 60) FROM generate_series(1, ${rows}) g;
    CREATE TABLE tick (id bigserial PRIMARY KEY, n integer);
    CREATE PUBLICATION p FOR ALL TABLES`);
  await client.query("CREATE SECRET pw AS 'bench'");
  await client.query(
    `CREATE CONNECTION origin TO POSTGRES (HOST '127.0.0.1', PORT ${origin.port}, USER postgres, PASSWORD SECRET pw, DATABASE shop, SSL MODE disable)`,
  );
  await client.query(`CREATE CONNECTION kafka TO KAFKA (BROKER '${broker}', SECURITY PROTOCOL 'PLAINTEXT')`);
  await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')");
  await client.query('CREATE TABLE item FROM SOURCE s (REFERENCE item); CREATE TABLE tick FROM SOURCE s (REFERENCE tick)');
  const peer = wanted('perf') ? await producerPerf(broker) : Number.NaN;

  const sinkOptions = 'KEY (id) FORMAT JSON ENVELOPE UPSERT';
  const snapshots = [];
  const costs = await cpuOf([admin, inside], millrace.pid);
  for (let round = 0; round < (wanted('snapshot') ? rounds : 1); round++) {
    if (round > 0) await client.query('DROP SINK snap');
    const begun = performance.now();
    await client.query(
      `CREATE SINK snap FROM item INTO KAFKA CONNECTION kafka (TOPIC 'snap${round}', COMPRESSION TYPE 'none') ${sinkOptions}`,
    );
    await until(async () => (await progress(client, 'snap')).messages >= rows);
    snapshots.push(rows / ((performance.now() - begun) / 1000));
  }
  if (wanted('snapshot')) {
    console.log(
      `snapshot of ${rows} rows as JSON upserts: ${show(median(snapshots))} rows/s (${show(rows / median(snapshots), 1)} s; ${snapshots.map((one) => show(one)).join(', ')}), ` +
        `${show(median(snapshots) / peer, 2)} of producer-perf; goal 50,000/s or 0.5`,
    );
    await costs(snapshots.length * rows);
  }
  if (wanted('cutover')) await cutovers(client);
  if (wanted('lateness')) await lateness(client, shop, broker);
  if (wanted('changes')) await sustained(client, shop, peer, await cpuOf([admin, inside], millrace.pid));
  for (const session of [client, shop, admin, inside]) await session.end();
}

/** The peer: records of about the size ours have. */
async function producerPerf(broker) {
  const cluster = await connectKafka({ brokers: [broker], tls: null, sasl: null });
  await cluster.ensureTopic({ name: 'perf', partitions: 4 });
  await cluster.close();
  const perf = [];
  for (let round = 0; round < rounds; round++) {
    const printed = await kafka.tool('org.apache.kafka.tools.ProducerPerformance', [
      ...['--topic', 'perf', '--num-records', String(rows), '--record-size', '170', '--throughput', '-1', '--producer-props'],
      ...[`bootstrap.servers=${broker}`, 'acks=all', 'compression.type=none', 'batch.size=65536', 'linger.ms=5'],
    ]);
    perf.push(Number(/([\d.]+) records\/sec[^\n]*99\.9th/.exec(printed)?.[1]));
  }
  const peer = median(perf);
  console.log(`producer-perf: ${show(peer)} records/s of 170 bytes (median of ${rounds}: ${perf.map((one) => show(one)).join(', ')})`);
  return peer;
}

async function cutovers(client) {
  await client.query('CREATE MATERIALIZED VIEW other AS SELECT id, name, price, stock, changed, note FROM item');
  const took = [];
  for (let round = 0; round < 6; round++) {
    const begun = performance.now();
    await client.query(`ALTER SINK snap SET FROM ${round % 2 === 0 ? 'other' : 'item'}`);
    took.push(performance.now() - begun);
  }
  console.log(
    `cutover between relations of ${rows} rows, no backfill: median ${show(median(took))} ms, most ${show(Math.max(...took))} ms; goal 1000 ms`,
  );
  await client.query('DROP MATERIALIZED VIEW other');
}

/** From the writer's commit until a consumer of committed messages has the message. */
async function lateness(client, shop, broker) {
  await client.query(
    "CREATE SINK ticks FROM tick INTO KAFKA CONNECTION kafka (TOPIC 'ticks', TOPIC PARTITION COUNT 1) KEY (id) FORMAT JSON ENVELOPE UPSERT",
  );
  const transport = openTransport({ brokers: [broker], tls: null, sasl: null });
  const committed = new Map();
  const late = [];
  const end = performance.now() + seconds * 1000;
  let writing = true;
  const writers = Array.from({ length: 4 }, async () => {
    let next = performance.now();
    while (next < end) {
      const pause = next - performance.now();
      if (pause > 0.5) await sleep(pause);
      const {
        rows: [row],
      } = await shop.query('INSERT INTO tick (n) VALUES (1) RETURNING id');
      committed.set(row.id, performance.now());
      next += 8;
    }
  });
  const reading = (async () => {
    let at = 0n;
    while (writing || late.length < committed.size) {
      const to = await endOffset(transport, 'ticks', 0, 'read_committed');
      if (to > at) {
        await readCommitted(transport, { topic: 'ticks', partition: 0, from: at, to }, ({ key }) => {
          const since = committed.get(String(JSON.parse(key.toString()).id));
          late.push(since === undefined ? 0 : performance.now() - since);
        });
        at = to;
      }
      if (performance.now() > end + 20_000) throw new Error('messages are missing');
      await sleep(2);
    }
  })();
  await Promise.all(writers);
  writing = false;
  await reading;
  late.sort((a, b) => a - b);
  const share = (of) => show(late[Math.floor(late.length * of)], 0);
  console.log(
    `commit to topic at 500 changes/s, ${late.length} messages: p50 ${share(0.5)} ms, p99 ${share(0.99)} ms, most ${show(late.at(-1), 0)} ms; goal p99 500 ms`,
  );
  await transport.close();
  await client.query('DROP SINK ticks');
}

/** Changes at a steady rate; how far the sink is behind meanwhile, what it has sent by the end, and how long it needs for the rest. */
async function sustained(client, shop, peer, costs) {
  const before = await progress(client, 'snap');
  const begun = performance.now();
  const quarters = [];
  const chunk = Math.ceil(rate / 10);
  let changed = 0;
  for (let tick = 0; performance.now() - begun < seconds * 1000; tick++) {
    const from = (tick * chunk) % rows;
    const { rowCount } = await shop.query('UPDATE item SET stock = stock + 1, changed = clock_timestamp() WHERE id > $1 AND id <= $2', [
      from,
      from + chunk,
    ]);
    changed += rowCount;
    if (performance.now() - begun >= ((quarters.length + 1) * seconds * 1000) / 4) {
      const written = changed;
      const sent = (await progress(client, 'snap')).messages - before.messages;
      quarters.push(Math.max(0, written - sent) / rate);
    }
    const due = begun + (tick + 1) * 100;
    if (due > performance.now()) await sleep(due - performance.now());
  }
  const wrote = (performance.now() - begun) / 1000;
  const atEnd = (await progress(client, 'snap')).messages - before.messages;
  await until(async () => (await progress(client, 'snap')).messages - before.messages >= changed);
  const took = (performance.now() - begun) / 1000;
  console.log(
    `changes: ${show(changed / wrote)} rows/s updated at the origin for ${show(wrote)} s; ${show(atEnd / wrote)}/s in the topic by then, ${show(changed / took)}/s until all were there ` +
      `(${show(changed / took / peer, 2)} of producer-perf); goal 50,000/s or 0.5`,
  );
  console.log(
    `  behind by then, after each quarter of the time: ${quarters.map((behind) => `${show(behind, 1)} s`).join(', ')} of changes`,
  );
  await costs(changed);
}

/** What a unit of work costs whom: answers what prints the CPU used since, in microseconds by process, or by thread of Millrace. */
async function cpuOf(servers, pid) {
  const spent = async () => {
    const names = new Map();
    for (const server of servers) {
      const { rows: sessions } = await server.query(
        "SELECT pid, concat_ws(' ', backend_type, datname, nullif(application_name, '')) AS name FROM pg_stat_activity",
      );
      for (const session of sessions) names.set(session.pid, session.name);
    }
    const found = new Map();
    for (const process of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
      try {
        const cmdline = readFileSync(`/proc/${process}/cmdline`, 'utf8').replaceAll('\0', ' ');
        const name =
          names.get(Number(process)) ?? (/kafka\.Kafka /.test(cmdline) ? 'broker' : isChild(Number(process), pid) ? 'millrace' : null);
        if (name === null) continue;
        for (const thread of name === 'millrace' ? readdirSync(`/proc/${process}/task`) : [process]) {
          const file = name === 'millrace' ? `/proc/${process}/task/${thread}/stat` : `/proc/${process}/stat`;
          const fields = readFileSync(file, 'utf8').split(') ')[1].split(' ');
          found.set(`${name} ${thread}`, Number(fields[11]) + Number(fields[12]));
        }
      } catch {}
    }
    return found;
  };
  const before = await spent();
  return async (units) => {
    const used = [...(await spent())].map(([name, ticks]) => [name, ((ticks - (before.get(name) ?? 0)) * 10_000) / units]);
    const most = used.filter(([, each]) => each >= 0.1).sort((a, b) => b[1] - a[1]);
    for (const [name, each] of most) console.log(`  ${show(each, 2).padStart(6)} µs of CPU each: ${name}`);
  };
}

function isChild(pid, of) {
  for (let at = pid; at > 1; ) {
    if (at === of) return true;
    at = Number(readFileSync(`/proc/${at}/stat`, 'utf8').split(') ')[1].split(' ')[1]);
  }
  return false;
}

async function progress(client, name) {
  const {
    rows: [row],
  } = await client.query('SELECT messages::integer AS messages FROM millrace.sinks WHERE name = $1', [name]);
  return row;
}

async function until(holds) {
  for (const end = performance.now() + 600_000; performance.now() < end; ) {
    if (await holds()) return;
    await sleep(50);
  }
  throw new Error('it does not come');
}
