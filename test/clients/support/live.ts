/** A live view over a table of another database of the same server. */
import pg from 'pg';
import { createDatabases } from './databases.ts';
import { type Place, role, target } from './place.ts';

export interface LiveView {
  /** Statements that bring the origin's table in as live.orders and keep live.totals (customer, orders, amount) over it, in order. */
  readonly statements: readonly string[];
  /** Somebody else writes at the origin: one order more. */
  order(customer: string, amount: number): Promise<void>;
  end(): Promise<void>;
}

/** What live.totals shows before any further order, ordered by customer. */
export const firstTotals = [
  { customer: 'ada', orders: 2, amount: 30 },
  { customer: 'bob', orders: 1, amount: 5 },
] as const;

/** Makes the origin with its table and publication; the view itself is left to the client. */
export async function liveView(place: Place, originDatabase: string): Promise<LiveView> {
  await createDatabases(place, [originDatabase]);
  const origin = new pg.Client({ connectionString: target(place, originDatabase, false).url });
  await origin.connect();
  await origin.query(`
    CREATE TABLE orders (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, amount integer NOT NULL);
    INSERT INTO orders (customer, amount) VALUES ('ada', 10), ('ada', 20), ('bob', 5);
    CREATE PUBLICATION sales FOR TABLE orders`);
  return {
    statements: [
      `CREATE SECRET origin_password AS '${role.password}'`,
      `CREATE CONNECTION origin TO POSTGRES (HOST '${place.host}', PORT ${place.upstreamPort}, USER ${role.user},
         PASSWORD SECRET origin_password, DATABASE ${originDatabase}, SSL MODE disable)`,
      `CREATE SOURCE sales FROM POSTGRES CONNECTION origin (PUBLICATION 'sales')`,
      'CREATE SCHEMA live',
      'CREATE TABLE live.orders FROM SOURCE sales (REFERENCE public.orders)',
      `CREATE MATERIALIZED VIEW live.totals AS
         SELECT customer, count(*)::integer AS orders, sum(amount)::integer AS amount FROM live.orders GROUP BY customer`,
    ],
    order: async (customer, amount) => {
      await origin.query('INSERT INTO orders (customer, amount) VALUES ($1, $2)', [customer, amount]);
    },
    end: () => origin.end(),
  };
}
