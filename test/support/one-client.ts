/** A client of Postgres, or of Millrace, for one piece of work. */
import pg from 'pg';

/** Connects, works and ends, whatever becomes of the work. A connection that is lost rejects what is asked of it, and nothing else. */
export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** One text. */
export const runOnce = (url: string, sql: string): Promise<pg.QueryResult> => withClient(url, (client) => client.query(sql));
