/**
 * Other clients of the same pool. They take its server connections again and again for a moment, so that the client under test finds
 * another one from transaction to transaction, and they leave behind there what must not be seen: settings of their own, and prepared
 * statements under the names that drivers use.
 */
import pg from 'pg';
import type { Target } from './place.ts';

const settings = [
  `SET search_path = pg_catalog; SET DateStyle = 'German, DMY'; SET TimeZone = 'Asia/Kolkata'; SET IntervalStyle = 'iso_8601'`,
  `SET standard_conforming_strings = off; SET client_encoding = 'LATIN1'; SET default_transaction_read_only = on; SET application_name = 'x'`,
] as const;

/** Names as node-postgres users, postgres.js, Prisma and JDBC give them; ours too, which must not collide either. */
const names = ['by price', 'totals', 'whole rows', 's0', 's1', 's2', 'S_1', 'a1b2c31', 'millrace_1', 'millrace_2'] as const;

export interface Neighbours {
  /** Rejects when one of them got a wrong answer. */
  end(): Promise<void>;
}

/** Lets them in. */
export async function neighbours(target: Target): Promise<Neighbours> {
  let leaving = false;
  const living = await Promise.all(
    settings.map(async (setting, number) => {
      const client = new pg.Client({ connectionString: target.url });
      await client.connect();
      await client.query(setting);
      return live(client, number, () => leaving);
    }),
  );
  return {
    async end() {
      leaving = true;
      for (const one of living) await one.done;
    },
  };
}

function live(client: pg.Client, number: number, leaving: () => boolean): { readonly done: Promise<void> } {
  const work = async (): Promise<void> => {
    for (let i = 0; !leaving(); i++) {
      const name = names[(i + 3 * number) % names.length] ?? '';
      const answer = `neighbour ${number} ${name}`;
      await client.query('BEGIN');
      await client.query('SELECT pg_sleep($1)', [((i * 7 + number) % 10) / 1_000]);
      const { rows } = await client.query({ name, text: `SELECT '${answer}' AS answer, $1::text AS given`, values: [String(i)] });
      await client.query('COMMIT');
      if (rows[0]?.answer !== answer || rows[0]?.given !== String(i)) throw new Error(`${answer} got ${JSON.stringify(rows)}`);
      await new Promise((resolve) => setTimeout(resolve, (i * 3 + 5 * number) % 8));
    }
    await client.end();
  };
  const done = work();
  // It is reported at the end.
  done.catch(() => undefined);
  return { done };
}
