/**
 * Writers that do what is hardest on a copy: values stored apart and left out of updates, keys that move, rows that go and come again.
 * Invariant: each row is somebody's all the time; every transaction either commits or leaves no trace.
 */
import pg from 'pg';

/** A client at the origin that outlives the end of its server. */
export async function patientClient(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  // A test that failed leaves writers behind, and their server goes.
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

export interface WrittenTable {
  /** Of the origin. */
  readonly url: string;
  readonly table: string;
  /** Keys are from 1 to this, but for rows that are away. */
  readonly rows: number;
}

/** So many writers, to rows all over a table with columns k, i (the key), n, big and tags. `stop` answers how many transactions there were. */
export function startHardWrites({ url, table, rows }: WrittenTable, count: number): { stop(): Promise<number> } {
  let isGoing = true;
  let transactions = 0;
  const pick = (): number => 1 + Math.floor(Math.random() * rows);
  const write = async (): Promise<void> => {
    const client = await patientClient(url);
    while (isGoing) {
      const [i, j] = [pick(), pick()];
      const statements = [
        `UPDATE ${table} SET n = n + 1 WHERE i = ${i}`,
        // To another place in the table; what is stored apart stays where it is.
        `UPDATE ${table} SET k = 'm' || ${j}, n = n + 1 WHERE i = ${i}`,
        `UPDATE ${table} SET k = chr(${65 + (j % 50)}) WHERE i = ${i}`,
        `UPDATE ${table} SET big = repeat(md5('${j}'), 80) WHERE i = ${i}`,
        `UPDATE ${table} SET tags = tags || '${j}'::text WHERE i = ${i}`,
        `BEGIN; DELETE FROM ${table} WHERE i = ${i}; INSERT INTO ${table} VALUES ('r' || ${j}, ${i}, 1, repeat(md5('${i}'), 75), NULL) ON CONFLICT DO NOTHING; COMMIT`,
        // Away and back, and another row where it was.
        `BEGIN; UPDATE ${table} SET i = i + 10000000 WHERE i = ${i}; UPDATE ${table} t SET i = ${i}, n = n + 1 WHERE i = ${j} AND NOT EXISTS (SELECT FROM ${table} x WHERE x.i = ${i}); COMMIT`,
        `UPDATE ${table} SET i = i - 10000000 WHERE i > 10000000 AND NOT EXISTS (SELECT FROM ${table} x WHERE x.i = ${table}.i - 10000000)`,
        `DELETE FROM ${table} WHERE i = ${i}`,
        `INSERT INTO ${table} VALUES ('n' || ${j}, ${i}, 0, CASE WHEN ${j} % 2 = 0 THEN repeat('n', 2500) END, '{}') ON CONFLICT DO NOTHING`,
      ];
      await client.query(statements[Math.floor(Math.random() * statements.length)] ?? '').catch(async (error: unknown) => {
        if (!(error instanceof pg.DatabaseError)) throw error;
        await client.query('ROLLBACK');
      });
      transactions++;
    }
    await client.end();
  };
  const work = Promise.all(Array.from({ length: count }, write));
  return {
    stop: async () => {
      isGoing = false;
      await work;
      return transactions;
    },
  };
}
