/** What tests of SUBSCRIBE share: readers that collect rows as they come. */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import type { TestClient } from '../statements/stage.ts';

export type Row = Record<string, string | null>;

/** A SUBSCRIBE under way; rows as text. */
export class Reader {
  readonly rows: Row[] = [];
  readonly done: Promise<pg.QueryArrayResult | Error>;

  constructor(client: pg.Client, sql: string) {
    const query = new pg.Query({ text: sql, types: { getTypeParser: () => (value: string) => value } } as pg.QueryConfig);
    this.done = new Promise((resolve) => {
      query.on('row', (row: Row) => this.rows.push(row));
      query.on('end', (result: unknown) => resolve(result as pg.QueryArrayResult));
      query.on('error', (error) => resolve(error));
    });
    client.query(query as unknown as pg.QueryConfig);
  }

  /** Waits for so many rows and takes them. */
  async take(count: number, timeoutMs = 15_000): Promise<Row[]> {
    const deadline = performance.now() + timeoutMs;
    while (this.rows.length < count) {
      const ended = await Promise.race([this.done, sleep(10)]);
      if (ended instanceof Error) throw ended;
      if (performance.now() > deadline) throw new Error(`waited for ${count} rows, came ${JSON.stringify(this.rows)}`);
    }
    return this.rows.splice(0, count);
  }
}

/** Without its timestamp, as one line. */
export const shown = ({ mz_timestamp: _, ...rest }: Row): string =>
  Object.values(rest)
    .map((value) => value ?? '-')
    .join(' ');

/** Cancels what the client runs, as Ctrl-C does. */
export async function cancel(client: TestClient): Promise<void> {
  const { host, port, processID, secretKey } = client as unknown as { host: string; port: number; processID: number; secretKey: number };
  const { connect } = await import('node:net');
  const packet = Buffer.alloc(16);
  packet.writeInt32BE(16, 0);
  packet.writeInt32BE(80877102, 4);
  packet.writeInt32BE(processID, 8);
  packet.writeInt32BE(secretKey, 12);
  await new Promise<void>((resolve) => {
    const socket = connect(port, host, () => socket.end(packet));
    socket.on('close', () => resolve());
    socket.on('error', () => resolve());
  });
}
