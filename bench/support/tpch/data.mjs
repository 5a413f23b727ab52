// The tables of TPC-H, their rows by SQL alone with the distributions that its queries depend on, and its refresh functions.
// Scale 1 is 150,000 orders and 600,000 lines: a tenth of the specification's, as in pg_trickle's benchmark.

const tables = `
  CREATE TABLE region (r_regionkey int PRIMARY KEY, r_name char(25) NOT NULL, r_comment varchar(152));
  CREATE TABLE nation (n_nationkey int PRIMARY KEY, n_name char(25) NOT NULL, n_regionkey int NOT NULL, n_comment varchar(152));
  CREATE TABLE supplier (s_suppkey int PRIMARY KEY, s_name char(25) NOT NULL, s_address varchar(40) NOT NULL, s_nationkey int NOT NULL,
    s_phone char(15) NOT NULL, s_acctbal numeric(15,2) NOT NULL, s_comment varchar(101) NOT NULL);
  CREATE TABLE customer (c_custkey int PRIMARY KEY, c_name varchar(25) NOT NULL, c_address varchar(40) NOT NULL, c_nationkey int NOT NULL,
    c_phone char(15) NOT NULL, c_acctbal numeric(15,2) NOT NULL, c_mktsegment char(10) NOT NULL, c_comment varchar(117) NOT NULL);
  CREATE TABLE part (p_partkey int PRIMARY KEY, p_name varchar(55) NOT NULL, p_mfgr char(25) NOT NULL, p_brand char(10) NOT NULL,
    p_type varchar(25) NOT NULL, p_size int NOT NULL, p_container char(10) NOT NULL, p_retailprice numeric(15,2) NOT NULL, p_comment varchar(23) NOT NULL);
  CREATE TABLE partsupp (ps_partkey int, ps_suppkey int, ps_availqty int NOT NULL, ps_supplycost numeric(15,2) NOT NULL, ps_comment varchar(199) NOT NULL,
    PRIMARY KEY (ps_partkey, ps_suppkey));
  CREATE TABLE orders (o_orderkey int PRIMARY KEY, o_custkey int NOT NULL, o_orderstatus char(1) NOT NULL, o_totalprice numeric(15,2) NOT NULL,
    o_orderdate date NOT NULL, o_orderpriority char(15) NOT NULL, o_clerk char(15) NOT NULL, o_shippriority int NOT NULL, o_comment varchar(79) NOT NULL);
  CREATE TABLE lineitem (l_orderkey int, l_linenumber int, l_partkey int NOT NULL, l_suppkey int NOT NULL, l_quantity numeric(15,2) NOT NULL,
    l_extendedprice numeric(15,2) NOT NULL, l_discount numeric(15,2) NOT NULL, l_tax numeric(15,2) NOT NULL, l_returnflag char(1) NOT NULL,
    l_linestatus char(1) NOT NULL, l_shipdate date NOT NULL, l_commitdate date NOT NULL, l_receiptdate date NOT NULL, l_shipinstruct char(25) NOT NULL,
    l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL, PRIMARY KEY (l_orderkey, l_linenumber));
`;

/** Foreign keys of the specification have an index each, for the queries as for the views. */
const indexes = `
  CREATE INDEX ON nation (n_regionkey); CREATE INDEX ON supplier (s_nationkey); CREATE INDEX ON customer (c_nationkey);
  CREATE INDEX ON partsupp (ps_suppkey); CREATE INDEX ON orders (o_custkey); CREATE INDEX ON lineitem (l_partkey, l_suppkey); CREATE INDEX ON lineitem (l_suppkey);
`;

const array = (text) =>
  `'{${text
    .split(',')
    .map((item) => `"${item}"`)
    .join(',')}}'::text[]`;
/** A number below `n` that looks random, from the expression `i`. */
const any = (i, salt, n) => `(hashint8extended((${i})::bigint, ${salt}) & 2147483647)::int % (${n})`;
const oneOf = (i, salt, text) => `(${array(text)})[1 + ${any(i, salt, text.split(',').length)}]`;
const money = (i, salt, from, to) => `(${from * 100} + ${any(i, salt, (to - from) * 100)}) / 100.0`;

const nations =
  'ALGERIA,ARGENTINA,BRAZIL,CANADA,EGYPT,ETHIOPIA,FRANCE,GERMANY,INDIA,INDONESIA,IRAN,IRAQ,JAPAN,JORDAN,KENYA,MOROCCO,MOZAMBIQUE,PERU,CHINA,ROMANIA,SAUDI ARABIA,VIETNAM,RUSSIA,UNITED KINGDOM,UNITED STATES';
const colours =
  'almond,antique,aquamarine,azure,beige,bisque,black,blanched,blue,blush,brown,burlywood,chartreuse,chocolate,coral,cornflower,cream,cyan,dark,deep,dim,dodger,drab,firebrick,forest,frosted,gainsboro,ghost,goldenrod,green,grey,honeydew,hot,indian,ivory,khaki,lace,lavender,lawn,lemon,light,lime,linen,magenta,maroon,medium,metallic,midnight,mint,misty';
const segments = 'AUTOMOBILE,BUILDING,FURNITURE,HOUSEHOLD,MACHINERY';
const priorities = '1-URGENT,2-HIGH,3-MEDIUM,4-NOT SPECIFIED,5-LOW';
const modes = 'AIR,FOB,MAIL,RAIL,REG AIR,SHIP,TRUCK';
const instructions = 'COLLECT COD,DELIVER IN PERSON,NONE,TAKE BACK RETURN';

const phone = (i, salt) => `(10 + ${any(i, salt, 25)})::text || '-' || lpad((${any(i, salt + 1, 1_000_000)})::text, 7, '0')`;

/** The n-th (0 to 3) supplier of a part, as the specification has it: so that lines find their row in partsupp. */
const supplierOf = (part, n, { suppliers }) => `1 + (${part} + (${n}) * (${suppliers} / 4 + (${part} - 1) / ${suppliers})) % ${suppliers}`;

/** Creates and fills the tables. Answers how large they are. */
export async function createTpch(client, scale) {
  const of = (n) => Math.max(4, Math.round(n * scale));
  const size = { suppliers: of(1000), parts: of(20_000), customers: of(15_000), orders: of(150_000) };
  const { suppliers, parts, customers, orders } = size;
  await client.query(tables);
  for (const statement of [
    `INSERT INTO region SELECT i - 1, (${array('AFRICA,AMERICA,ASIA,EUROPE,MIDDLE EAST')})[i], 'region' FROM generate_series(1, 5) i`,
    `INSERT INTO nation SELECT i - 1, (${array(nations)})[i], ('{0,1,1,1,4,0,3,3,2,2,4,4,2,4,0,0,0,1,2,3,4,2,3,3,1}'::int[])[i], 'nation' FROM generate_series(1, 25) i`,
    `INSERT INTO supplier SELECT i, 'Supplier#' || lpad(i::text, 9, '0'), 'address ' || i, ${any('i', 31, 25)}, ${phone('i', 31)}, ${money('i', 33, -999, 9999)},
            CASE WHEN ${any('i', 34, 200)} = 0 THEN 'slow Customer many Complaints' ELSE 'supplier of parts' END FROM generate_series(1, ${suppliers}) i`,
    `INSERT INTO customer SELECT i, 'Customer#' || lpad(i::text, 9, '0'), 'address ' || i, ${any('i', 41, 25)}, ${phone('i', 41)}, ${money('i', 43, -999, 9999)},
            ${oneOf('i', 44, segments)}, 'customer of many orders' FROM generate_series(1, ${customers}) i`,
    `INSERT INTO part SELECT i, ${[51, 52, 53, 54, 55].map((salt) => oneOf('i', salt, colours)).join(" || ' ' || ")}, 'Manufacturer#' || (1 + ${any('i', 56, 5)}),
            'Brand#' || (1 + ${any('i', 56, 5)}) || (1 + ${any('i', 57, 5)}),
            ${oneOf('i', 58, 'ECONOMY,LARGE,MEDIUM,PROMO,SMALL,STANDARD')} || ' ' || ${oneOf('i', 59, 'ANODIZED,BRUSHED,BURNISHED,PLATED,POLISHED')} || ' ' ||
              ${oneOf('i', 60, 'BRASS,COPPER,NICKEL,STEEL,TIN')},
            1 + ${any('i', 61, 50)}, ${oneOf('i', 62, 'JUMBO,LG,MED,SM,WRAP')} || ' ' || ${oneOf('i', 63, 'BAG,BOX,CAN,CASE,DRUM,JAR,PACK,PKG')},
            900 + (i % 1000) / 10.0 + i % 200, 'part' FROM generate_series(1, ${parts}) i`,
    `INSERT INTO partsupp SELECT p, ${supplierOf('p', 'n', size)}, 1 + ${any('p * 4 + n', 71, 9999)}, ${money('p * 4 + n', 72, 1, 1000)}, 'supplied in time'
       FROM generate_series(1, ${parts}) p, generate_series(0, 3) n ON CONFLICT DO NOTHING`,
    ...insertOrders(`generate_series(1, ${orders}) k`, size),
    indexes,
    'VACUUM ANALYZE',
  ]) {
    await client.query(statement);
  }
  return size;
}

/** Orders with one to seven lines each. `keys`: a FROM item with the column k. A third of the customers order nothing. */
function insertOrders(keys, size) {
  const line = 'k::bigint * 8 + n';
  return [
    `INSERT INTO orders
     SELECT k, c - (c % 3 = 0)::int, CASE WHEN day < 1200 THEN 'F' WHEN day < 1300 THEN 'P' ELSE 'O' END, ${money('k', 2, 1000, 400_000)}, DATE '1992-01-01' + day,
            ${oneOf('k', 4, priorities)}, 'Clerk#' || ${any('k', 5, 1000)}, 0,
            CASE WHEN ${any('k', 6, 100)} = 0 THEN 'of special wishes and requests' ELSE 'an order like others' END
       FROM ${keys}, LATERAL (SELECT 2 + ${any('k', 1, size.customers - 1)} AS c, ${any('k', 3, 2406)} AS day) x`,
    `INSERT INTO lineitem
     SELECT k, n, p, ${supplierOf('p', any(line, 12, 4), size)}, q, q * (900 + (p % 1000) / 10.0 + p % 200), ${any(line, 14, 11)} / 100.0, ${any(line, 15, 9)} / 100.0,
            CASE WHEN received <= 1263 THEN ${oneOf(line, 16, 'R,A')} ELSE 'N' END, CASE WHEN shipped > 1263 THEN 'O' ELSE 'F' END,
            DATE '1992-01-01' + shipped, DATE '1992-01-01' + day + 30 + ${any(line, 19, 61)}, DATE '1992-01-01' + received,
            ${oneOf(line, 21, instructions)}, ${oneOf(line, 22, modes)}, 'a line'
       FROM ${keys}, LATERAL (SELECT ${any('k', 3, 2406)} AS day) o, generate_series(1, 1 + ${any('k', 8, 7)}) n,
            LATERAL (SELECT 1 + ${any(line, 10, size.parts)} AS p, 1 + ${any(line, 11, 50)} AS q, day + 1 + ${any(line, 18, 121)} AS shipped) l,
            LATERAL (SELECT shipped + 1 + ${any(line, 20, 30)} AS received) r`,
  ];
}

/**
 * One transaction: RF1, new orders; RF2, the oldest go; RF3, as many others change, with all their lines, and customers' balances.
 * Each of `share` of the orders.
 */
export async function changeOrders(client, size, share) {
  const n = Math.max(1, Math.round(size.orders * share));
  const { rows } = await client.query('SELECT min(o_orderkey) AS first, max(o_orderkey) AS last FROM orders');
  const { first, last } = rows[0];
  const from = first + n + Math.floor(Math.random() * (last - first - 3 * n));
  await client.query('BEGIN');
  for (const statement of insertOrders(`generate_series(${last + 1}, ${last + n}) k`, size)) await client.query(statement);
  await client.query(`DELETE FROM lineitem WHERE l_orderkey < ${first + n}`);
  await client.query(`DELETE FROM orders WHERE o_orderkey < ${first + n}`);
  const changed = `BETWEEN ${from} AND ${from + n - 1}`;
  await client.query(
    `UPDATE orders SET o_orderstatus = CASE o_orderstatus WHEN 'F' THEN 'O' ELSE 'F' END, o_totalprice = o_totalprice + 10 WHERE o_orderkey ${changed}`,
  );
  await client.query(
    `UPDATE lineitem SET l_quantity = 1 + (l_quantity::int + 7) % 50, l_extendedprice = l_extendedprice * 1.05, l_discount = ((l_discount * 100)::int + 3) % 11 / 100.0
      WHERE l_orderkey ${changed}`,
  );
  const customers = Math.max(1, Math.round(size.customers * share));
  const customer = 1 + Math.floor(Math.random() * (size.customers - customers));
  await client.query(`UPDATE customer SET c_acctbal = c_acctbal + 250 WHERE c_custkey BETWEEN ${customer} AND ${customer + customers - 1}`);
  await client.query('COMMIT');
}
