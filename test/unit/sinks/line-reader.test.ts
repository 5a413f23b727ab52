import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { FramesHandler } from '../../../src/replication/session-contract.ts';
import type { OutboxRow } from '../../../src/sinks/changes.ts';
import { LineReader } from '../../../src/sinks/line-reader.ts';

/** A session that answers every COPY with these reads of the socket, and waits between them while it is paused. */
function sessionOf(reads: readonly (readonly string[])[], failure?: Error) {
  let resumed: (() => void) | null = null;
  let isPaused = false;
  const session = {
    handed: 0,
    pauses: 0,
    pause(): void {
      isPaused = true;
      session.pauses++;
    },
    resume(): void {
      isPaused = false;
      resumed?.();
    },
    async copyOut(_sql: string, onFrames: FramesHandler): Promise<string> {
      for (const lines of reads) {
        if (isPaused)
          await new Promise<void>((resolve) => {
            resumed = resolve;
          });
        const frames = lines.map((line) => {
          const frame = Buffer.from(`d....${line}\n`);
          frame.writeUInt32BE(frame.length - 1, 1);
          return frame;
        });
        const read = Buffer.concat([Buffer.from('before'), ...frames]);
        onFrames(read, 'before'.length, read.length, lines.length);
        // The buffer belongs to the socket.
        read.fill(0);
        session.handed += lines.length;
        await new Promise((resolve) => setImmediate(resolve));
      }
      if (failure !== undefined) throw failure;
      return 'COPY';
    },
  };
  return session;
}

const shape = { layout: { fieldOf: [0, 1] }, grouped: 1, ts: null } as const;
const shown = ({ ts, weight, partition, line, groupStart, groupEnd }: OutboxRow) => ({
  ts,
  weight,
  partition,
  values: line.values(),
  group: line.buffer.toString('utf8', groupStart, groupEnd),
});

async function rowsOf(reads: readonly (readonly string[])[]): Promise<ReturnType<typeof shown>[]> {
  const rows: ReturnType<typeof shown>[] = [];
  await new LineReader(sessionOf(reads), shape).read('q', async (page) => {
    await new Promise((resolve) => setImmediate(resolve));
    rows.push(...page.map(shown));
  });
  return rows;
}

describe('rows of a COPY', () => {
  test('have a weight, a partition, a timestamp and their columns; the timestamp and the key tell groups apart', async () => {
    expect(await rowsOf([['-1\t\\N\t1732230000123\t7\told', '1\t-4\t1732230000123\t7\t\\N']])).toEqual([
      { ts: 1732230000123, weight: -1, partition: null, values: ['7', 'old'], group: '1732230000123\t7\t' },
      { ts: 1732230000123, weight: 1, partition: '-4', values: ['7', null], group: '1732230000123\t7\t' },
    ]);
  });

  test('may have no columns', async () => {
    const rows: OutboxRow[] = [];
    const reader = new LineReader(sessionOf([['1\t\\N\t12']]), { layout: { fieldOf: [] }, grouped: 0, ts: 5 });
    await reader.read('q', async (page) => {
      rows.push(...page);
    });
    expect(rows.map((row) => [row.ts, row.line.values()])).toEqual([[5, []]]);
    expect(reader.lastNumber).toBe(12);
  });

  test('come in order, each once, however the socket cuts them up', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(40), { maxLength: 12 }), fc.nat(30_000), async (sizes, width) => {
        let next = 0;
        const reads = sizes.map((size) => Array.from({ length: size }, () => `1\t\\N\t1\t${next++}\t${'x'.repeat(width)}`));
        expect((await rowsOf(reads)).map(({ values }) => Number(values[0]))).toEqual([...Array(next).keys()]);
      }),
      { numRuns: 40 },
    );
  });

  test('are waited for by the server while nobody takes them', async () => {
    const session = sessionOf(Array.from({ length: 200 }, (_, at) => [`1\t\\N\t1\t${at}\t${'x'.repeat(100_000)}`]));
    let most = 0;
    let taken = 0;
    await new LineReader(session, shape).read('q', async (page) => {
      for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
      most = Math.max(most, session.handed - taken);
      taken += page.length;
    });
    expect(taken).toBe(200);
    expect(session.pauses).toBeGreaterThan(0);
    // 4 MiB waiting, as much in hand, and what was read when that was noticed.
    expect(most).toBeLessThan(100);
  });

  test('are read to their end when who takes them fails, so that the session can be used again', async () => {
    const session = sessionOf(Array.from({ length: 100 }, (_, at) => [`1\t\\N\t1\t${at}\t${'x'.repeat(100_000)}`]));
    const failure = new Error('the broker is away');
    await expect(new LineReader(session, shape).read('q', () => Promise.reject(failure))).rejects.toBe(failure);
    expect(session.handed).toBe(100);
  });

  test('an error of the server is the error', async () => {
    const failure = new Error('relation does not exist');
    await expect(new LineReader(sessionOf([['1\t\\N\t1\t1\ta']], failure), shape).read('q', async () => undefined)).rejects.toBe(failure);
  });
});
