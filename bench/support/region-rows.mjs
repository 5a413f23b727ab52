// The tables, changes and queries of pg_trickle's own end-to-end benchmark (docs/BENCHMARK.md): src and dim, three statements a cycle.
export const queries = {
  scan: 'SELECT id, region, category, amount, score FROM src',
  filter: 'SELECT id, region, amount FROM src WHERE amount > 5000',
  aggregate: 'SELECT region, SUM(amount) AS total, COUNT(*) AS cnt FROM src GROUP BY region',
  join: 'SELECT s.id, s.region, s.amount, d.region_name FROM src s JOIN dim d ON s.region = d.region',
  join_agg:
    'SELECT d.region_name, SUM(s.amount) AS total, COUNT(*) AS cnt FROM src s JOIN dim d ON s.region = d.region GROUP BY d.region_name',
  window: 'SELECT id, region, amount, ROW_NUMBER() OVER (PARTITION BY region ORDER BY amount DESC, id) AS rn FROM src',
  lateral: 'SELECT d.region, d.region_name, m.top FROM dim d, LATERAL (SELECT MAX(s.score) AS top FROM src s WHERE s.region = d.region) m',
  cte: `WITH totals AS (SELECT region, SUM(amount) AS total, COUNT(*) AS cnt FROM src GROUP BY region)
        SELECT d.region_name, t.total, t.cnt FROM totals t JOIN dim d ON d.region = t.region`,
  union_all: `SELECT id, region, amount, 'high' AS level FROM src WHERE amount > 5000
              UNION ALL SELECT id, region, amount, 'low' AS level FROM src WHERE amount <= 5000`,
};

export async function createRows(client, rows) {
  await client.query(`
    CREATE TABLE src (id serial PRIMARY KEY, region text NOT NULL, category text NOT NULL, amount integer NOT NULL, score integer NOT NULL);
    CREATE TABLE dim (region text PRIMARY KEY, region_name text NOT NULL);
    INSERT INTO dim SELECT r, initcap(r) || ' region' FROM unnest('{north,south,east,west,central}'::text[]) r;
    SELECT setseed(0.5);
    INSERT INTO src (region, category, amount, score) ${randomRows(rows)};
    ANALYZE src, dim`);
}

/** 70 % of the changes are updates, 15 % deletes, 15 % inserts, each a transaction. */
export async function changeRows(client, changes) {
  const part = (share) => Math.max(1, Math.floor(changes * share));
  const some = (share) => `(SELECT id FROM src ORDER BY random() LIMIT ${part(share)})`;
  await client.query(`UPDATE src SET amount = amount + 1 WHERE id IN ${some(0.7)}`);
  await client.query(`DELETE FROM src WHERE id IN ${some(0.15)}`);
  await client.query(`INSERT INTO src (region, category, amount, score) ${randomRows(part(0.15))}`);
}

const randomRows = (rows) => `
  SELECT ('{north,south,east,west,central}'::text[])[i % 5 + 1], ('{A,B,C,D}'::text[])[i % 4 + 1], (random() * 10000)::integer, (random() * 100)::integer
    FROM generate_series(1, ${rows}) i`;
