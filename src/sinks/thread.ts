/**
 * The thread that delivers the sinks of one database.
 * Invariant: each sink has a delivery of its own, which stands still alone; the thread ends when it is told to or when its own sessions are lost,
 * and is started again from what is committed.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { createLogger } from '../log.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import { connectPg } from '../replication/server-address.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { pinnedSettings } from '../replication/settings.ts';
import { Delivery } from './delivery.ts';
import type { SinkMessage, SinkThreadConfig } from './messages.ts';
import { readSinks, readVersion, type StoredSink } from './sink-catalog.ts';
import { openTarget } from './targets.ts';
import { endSubscriptions, summarizeOutboxes, trimOutboxes } from './trim.ts';

const trimEveryMs = 2000;
const summarizeEveryMs = 250;
const countEveryMs = 1000;
const defaultLimit = 8 * 1024 ** 3;
const defaultSegment = 64 * 1024 ** 2;

interface Entry {
  readonly delivery: Delivery;
  readonly session: RawConnection;
}

async function main(config: SinkThreadConfig): Promise<void> {
  const log = createLogger('sinks').child({ database: config.database });
  const fail = (error: unknown): never => {
    log.error({ err: error }, 'the delivery of sinks ends');
    process.exit(1);
  };
  const catalog = await connectPg(config.upstream, { database: config.database, applicationName: 'millrace sinks' });
  catalog.on('error', fail);
  const found = await catalog.query<{ id: string }>('SELECT id FROM millrace.installation');
  const targets = { secretKey: config.secretKey, installation: found.rows[0]?.id ?? '' };
  const bounds = {
    limit: Number(process.env['MILLRACE_OUTBOX_LIMIT'] ?? defaultLimit),
    segment: Number(process.env['MILLRACE_OUTBOX_SEGMENT'] ?? defaultSegment),
  };
  const entries = new Map<number, Entry>();
  const counts = new Map<number, { messages: number; bytes: number }>();
  const totals: Record<string, number> = {};

  const start = async (sink: StoredSink): Promise<void> => {
    const session = await connectRaw(config.upstream, {
      database: config.database,
      applicationName: 'millrace sink',
      settings: {
        ...pinnedSettings,
        search_path: '',
        statement_timeout: '0',
        jit: 'off',
        max_parallel_workers_per_gather: '0',
        // A batch is sorted in memory.
        work_mem: '32MB',
        // An outbox has grown and shrunk since it was last analyzed, and most of its pages are full of what is out: what is read is found by the index.
        enable_seqscan: 'off',
      },
    });
    session.onClose((error) => {
      if (error !== undefined) fail(error);
    });
    const accepted = new Set<string>();
    const delivery = new Delivery(sink, {
      session,
      token: config.token,
      target: async (stored, waits) => openTarget(stored, targets, accepted, waits),
      tell: async (sql) => {
        await catalog.query(sql);
      },
      versionOf: (id, version) => readVersion(catalog, id, version),
      counted: (id, messages, bytes) => {
        const count = counts.get(id) ?? { messages: 0, bytes: 0 };
        counts.set(id, { messages: count.messages + messages, bytes: count.bytes + bytes });
      },
      log,
      now: () => performance.now(),
    });
    entries.set(sink.id, { delivery, session });
  };
  const stop = async (id: number): Promise<void> => {
    const entry = entries.get(id);
    if (entry === undefined) return;
    entries.delete(id);
    await entry.delivery.stop();
    await entry.session.close();
  };

  // One after the other: each look at the catalog is acted upon before the next.
  let following: Promise<void> = Promise.resolve();
  let isDue = false;
  const follow = (): void => {
    if (isDue) return;
    isDue = true;
    following = following
      .then(async () => {
        isDue = false;
        const sinks = await readSinks(catalog);
        const wanted = new Map(sinks.map((sink) => [sink.id, sink]));
        for (const [id, { delivery }] of entries) {
          if (wanted.get(id)?.fingerprint !== delivery.sink.fingerprint) await stop(id);
        }
        for (const sink of sinks) if (!entries.has(sink.id)) await start(sink);
        for (const { delivery } of entries.values()) delivery.reread();
      })
      .catch(fail);
  };

  let trimming = false;
  let isWritten = false;
  const timers = [
    setInterval(() => {
      if (trimming || !isWritten) return;
      isWritten = false;
      summarizeOutboxes(catalog).catch((error: unknown) => log.warn({ err: error }, 'outboxes could not be indexed'));
    }, summarizeEveryMs),
    setInterval(() => {
      if (trimming) return;
      trimming = true;
      void endSubscriptions(catalog)
        .then(() => trimOutboxes(catalog, bounds))
        .then((overrun) => {
          if (overrun.length > 0)
            log.error({ sinks: overrun, limit: bounds.limit }, 'outboxes have grown to their limit; changes of sinks are thrown away');
        })
        // A table may go while it is looked at.
        .catch((error: unknown) => log.warn({ err: error }, 'outboxes could not be cleared'))
        .finally(() => {
          trimming = false;
        });
    }, trimEveryMs),
    setInterval(() => {
      const due = [...counts];
      counts.clear();
      for (const [id, { messages, bytes }] of due) {
        catalog
          .query('UPDATE millrace.sink_progress SET messages = messages + $2, bytes = bytes + $3 WHERE sink_id = $1', [id, messages, bytes])
          .catch(fail);
        const label = `{sink="${id}"}`;
        totals[`millrace_sink_messages_total${label}`] = (totals[`millrace_sink_messages_total${label}`] ?? 0) + messages;
        totals[`millrace_sink_bytes_total${label}`] = (totals[`millrace_sink_bytes_total${label}`] ?? 0) + bytes;
      }
      if (due.length > 0) parentPort?.postMessage(totals);
    }, countEveryMs),
  ];

  parentPort?.on('message', (message: SinkMessage) => {
    switch (message.type) {
      case 'catalog':
        follow();
        break;
      case 'written':
        isWritten = true;
        for (const { delivery } of entries.values()) delivery.wake();
        break;
      case 'stop':
        for (const timer of timers) clearInterval(timer);
        void following
          .then(() => Promise.all([...entries.keys()].map(stop)))
          .then(() => catalog.end())
          .finally(() => process.exit(0));
        break;
    }
  });
  follow();
}

await main(workerData as SinkThreadConfig);
