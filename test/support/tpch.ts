/**
 * TPC-H in small: tables, rows by arithmetic, the 22 queries, and changes in the manner of its refresh functions.
 * Source: TPC-H standard specification 3.0.1; values of substitution parameters are chosen so that few rows give results.
 */

export interface TpchTable {
  readonly name: string;
  readonly columns: readonly (readonly [name: string, type: string])[];
  /** How many columns, from the first, are the key. */
  readonly key: number;
}

const columns = (text: string): (readonly [string, string])[] =>
  text.split(';').map((item) => {
    const [name = '', ...type] = item.trim().split(' ');
    return [name, type.join(' ')] as const;
  });

export const tpchTables: readonly TpchTable[] = [
  { name: 'region', key: 1, columns: columns('r_regionkey int; r_name char(25); r_comment varchar(152)') },
  { name: 'nation', key: 1, columns: columns('n_nationkey int; n_name char(25); n_regionkey int; n_comment varchar(152)') },
  {
    name: 'supplier',
    key: 1,
    columns: columns(
      's_suppkey int; s_name char(25); s_address varchar(40); s_nationkey int; s_phone char(15); s_acctbal numeric(15,2); s_comment varchar(101)',
    ),
  },
  {
    name: 'customer',
    key: 1,
    columns: columns(
      'c_custkey int; c_name varchar(25); c_address varchar(40); c_nationkey int; c_phone char(15); c_acctbal numeric(15,2); c_mktsegment char(10); c_comment varchar(117)',
    ),
  },
  {
    name: 'part',
    key: 1,
    columns: columns(
      'p_partkey int; p_name varchar(55); p_mfgr char(25); p_brand char(10); p_type varchar(25); p_size int; p_container char(10); p_retailprice numeric(15,2); p_comment varchar(23)',
    ),
  },
  {
    name: 'partsupp',
    key: 2,
    columns: columns('ps_partkey int; ps_suppkey int; ps_availqty int; ps_supplycost numeric(15,2); ps_comment varchar(199)'),
  },
  {
    name: 'orders',
    key: 1,
    columns: columns(
      'o_orderkey bigint; o_custkey int; o_orderstatus char(1); o_totalprice numeric(15,2); o_orderdate date; o_orderpriority char(15); o_clerk char(15); o_shippriority int; o_comment varchar(79)',
    ),
  },
  {
    name: 'lineitem',
    key: 2,
    columns: columns(
      'l_orderkey bigint; l_linenumber int; l_partkey int; l_suppkey int; l_quantity numeric(15,2); l_extendedprice numeric(15,2); l_discount numeric(15,2); l_tax numeric(15,2); l_returnflag char(1); l_linestatus char(1); l_shipdate date; l_commitdate date; l_receiptdate date; l_shipinstruct char(25); l_shipmode char(10); l_comment varchar(44)',
    ),
  },
];

export interface TpchSize {
  readonly suppliers: number;
  readonly parts: number;
  readonly customers: number;
  readonly orders: number;
}

/** A number below `n` that looks random, from the expression `i`. */
const any = (i: string, salt: number, n: number | string): string => `(abs(hashint8((${i})::bigint * 1000003 + ${salt})) % (${n}))`;
const oneOf = (i: string, salt: number, items: readonly string[]): string =>
  `(ARRAY[${items.map((item) => `'${item}'`).join(', ')}])[1 + ${any(i, salt, items.length)}]`;

const nations =
  'ALGERIA ARGENTINA BRAZIL CANADA EGYPT ETHIOPIA FRANCE GERMANY INDIA INDONESIA IRAN IRAQ JAPAN JORDAN KENYA MOROCCO MOZAMBIQUE PERU CHINA ROMANIA SAUDI VIETNAM RUSSIA UK USA'.split(
    ' ',
  );
const regions = ['AFRICA', 'AMERICA', 'ASIA', 'EUROPE', 'MIDDLE EAST'];
const regionOf = [0, 1, 1, 1, 4, 0, 3, 3, 2, 2, 4, 4, 2, 4, 0, 0, 0, 1, 2, 3, 4, 2, 3, 3, 1];
const list = (items: readonly (string | number)[]): string =>
  `ARRAY[${items.map((item) => (typeof item === 'string' ? `'${item}'` : item)).join(', ')}]`;

/** Orders `from`..`to` with one to six lines each. */
export function insertOrders(from: number, to: number, size: TpchSize): string[] {
  return [
    `INSERT INTO orders
     SELECT i, 1 + ${any('i', 1, size.customers)}, ${oneOf('i', 2, ['F', 'O', 'P'])}, 1000 + ${any('i', 3, 400000)},
            DATE '1993-01-01' + ${any('i', 4, 2000)}, ${oneOf('i', 5, ['1-URGENT', '2-HIGH', '3-MEDIUM', '4-NOT SPECIFIED', '5-LOW'])},
            'Clerk#' || ${any('i', 6, 20)}, 0, CASE WHEN ${any('i', 7, 5)} = 0 THEN 'x special packages requests' ELSE 'plain' END
     FROM generate_series(${from}, ${to}) i`,
    `INSERT INTO lineitem
     SELECT o_orderkey, n, p, 1 + (p + ${any('k', 11, 4)} * (${size.suppliers} / 4 + (p - 1) / ${size.suppliers})) % ${size.suppliers},
            1 + ${any('k', 12, 50)}, 900 + ${any('k', 13, 90000)}, ${any('k', 14, 11)} / 100.0, ${any('k', 15, 9)} / 100.0,
            CASE WHEN o_orderdate < DATE '1995-06-17' THEN ${oneOf('k', 16, ['R', 'A'])} ELSE 'N' END, ${oneOf('k', 17, ['O', 'F'])},
            o_orderdate + 1 + ${any('k', 18, 120)}, o_orderdate + 30 + ${any('k', 19, 60)}, o_orderdate + 2 + ${any('k', 18, 120)} + ${any('k', 20, 30)},
            ${oneOf('k', 21, ['DELIVER IN PERSON', 'COLLECT COD', 'NONE'])}, ${oneOf('k', 22, ['AIR', 'REG AIR', 'MAIL', 'SHIP', 'TRUCK'])}, 'line'
     FROM orders, generate_series(1, 1 + ${any('o_orderkey', 8, 6)}) n,
          LATERAL (SELECT o_orderkey * 7 + n AS k, 1 + ${any('o_orderkey * 7 + n', 10, size.parts)} AS p) x
     WHERE o_orderkey BETWEEN ${from} AND ${to}`,
  ];
}

/** Statements that fill the empty tables. */
export function fillTpch(size: TpchSize): string[] {
  return [
    `INSERT INTO region SELECT i - 1, (${list(regions)})[i], 'region' FROM generate_series(1, 5) i`,
    `INSERT INTO nation SELECT i - 1, (${list(nations)})[i], (${list(regionOf)})[i], 'nation' FROM generate_series(1, 25) i`,
    `INSERT INTO supplier
     SELECT i, 'Supplier#' || i, 'address ' || i, ${any('i', 31, 25)}, (10 + ${any('i', 31, 25)})::text || '-555', ${any('i', 32, 1100000)} / 100.0 - 999,
            CASE WHEN ${any('i', 33, 6)} = 0 THEN 'so Customer sad Complaints' ELSE 'fine' END
     FROM generate_series(1, ${size.suppliers}) i`,
    `INSERT INTO customer
     SELECT i, 'Customer#' || i, 'address ' || i, ${any('i', 41, 25)}, (10 + ${any('i', 41, 25)})::text || '-555', ${any('i', 42, 1100000)} / 100.0 - 999,
            ${oneOf('i', 43, ['BUILDING', 'AUTOMOBILE', 'MACHINERY'])}, 'customer'
     FROM generate_series(1, ${size.customers}) i`,
    `INSERT INTO part
     SELECT i, ${oneOf('i', 51, ['green forest', 'forest red', 'blue sky', 'light green'])} || ' part', 'Manufacturer#1', 'Brand#' || (1 + ${any('i', 52, 3)}) || '3',
            ${oneOf('i', 53, ['ECONOMY ANODIZED STEEL', 'PROMO PLATED TIN', 'MEDIUM POLISHED BRASS', 'STANDARD BRUSHED BRASS'])}, (ARRAY[3, 9, 14, 15, 19])[1 + ${any('i', 54, 5)}],
            ${oneOf('i', 55, ['MED BOX', 'SM CASE', 'LG BOX', 'SM PKG'])}, 900 + i, 'part'
     FROM generate_series(1, ${size.parts}) i`,
    `INSERT INTO partsupp
     SELECT p, 1 + (p + n * (${size.suppliers} / 4 + (p - 1) / ${size.suppliers})) % ${size.suppliers}, 1 + ${any('p * 4 + n', 61, 999)}, ${any('p * 4 + n', 62, 100000)} / 100.0, 'ps'
     FROM generate_series(1, ${size.parts}) p, generate_series(0, 3) n ON CONFLICT DO NOTHING`,
    ...insertOrders(1, size.orders, size),
  ];
}

/** Changes for an epoch: RF1 (new orders), RF2 (orders go), RF3 (orders and lines change), and changes of the other tables. */
export function changeTpch(round: number, size: TpchSize): string[] {
  const next = size.orders + round * 10;
  const some = (key: string, every: number): string => `${any(key, round * 7, every)} = 0`;
  const orderChanges = [
    ...insertOrders(next + 1, next + 6, size),
    `DELETE FROM lineitem WHERE ${some('l_orderkey', 40)}`,
    `DELETE FROM orders WHERE ${some('o_orderkey', 40)}`,
    `UPDATE orders SET o_orderstatus = 'F', o_totalprice = o_totalprice + 1, o_orderpriority = '1-URGENT' WHERE ${some('o_orderkey + 1', 20)}`,
    `UPDATE lineitem SET l_quantity = 1 + (l_quantity::int + 17) % 50, l_extendedprice = l_extendedprice * 1.1, l_discount = 0.06 WHERE ${some('l_orderkey + 1', 20)}`,
    `UPDATE customer SET c_acctbal = c_acctbal + 250 WHERE ${some('c_custkey', 10)}`,
  ];
  const otherChanges = [
    `UPDATE partsupp SET ps_availqty = ps_availqty + 100, ps_supplycost = ps_supplycost / 2 WHERE ${some('ps_partkey * 5 + ps_suppkey', 12)}`,
    `DELETE FROM partsupp WHERE ${some('ps_partkey * 3 + ps_suppkey', 60)}`,
    `UPDATE supplier SET s_nationkey = (s_nationkey + 1) % 25, s_comment = 'Customer has Complaints' WHERE ${some('s_suppkey', 8)}`,
    `UPDATE customer SET c_nationkey = (c_nationkey + 3) % 25, c_mktsegment = 'BUILDING', c_phone = '13-555' WHERE ${some('c_custkey', 9)}`,
    `UPDATE part SET p_name = 'forest green', p_size = 15, p_brand = 'Brand#23', p_container = 'MED BOX' WHERE ${some('p_partkey', 12)}`,
    `UPDATE orders SET o_custkey = 1 + o_custkey % ${size.customers} WHERE ${some('o_orderkey', 25)}`,
    `UPDATE lineitem SET l_linenumber = l_linenumber + 10, l_suppkey = 1 + l_suppkey % ${size.suppliers} WHERE ${some('l_orderkey', 30)}`,
    `DELETE FROM customer WHERE ${some('c_custkey + 7', 50)}`,
    `UPDATE nation SET n_name = CASE n_name WHEN 'FRANCE' THEN 'GERMANY' WHEN 'GERMANY' THEN 'FRANCE' ELSE n_name END, n_regionkey = n_regionkey
     WHERE n_nationkey IN (6, 7)`,
    `UPDATE nation SET n_regionkey = (n_regionkey + 1) % 5 WHERE ${some('n_nationkey', 12)}`,
  ];
  return round % 3 === 0 ? orderChanges : round % 3 === 1 ? otherChanges : [...otherChanges, ...orderChanges];
}

const revenue = 'l_extendedprice * (1 - l_discount)';

export const tpchQueries: readonly (readonly [name: string, sql: string])[] = [
  [
    'q01',
    `SELECT l_returnflag, l_linestatus, sum(l_quantity) AS sum_qty, sum(l_extendedprice) AS sum_base_price, sum(${revenue}) AS sum_disc_price,
            sum(${revenue} * (1 + l_tax)) AS sum_charge, avg(l_quantity) AS avg_qty, avg(l_extendedprice) AS avg_price, avg(l_discount) AS avg_disc, count(*) AS count_order
     FROM lineitem WHERE l_shipdate <= DATE '1998-12-01' - INTERVAL '90 day' GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus`,
  ],
  [
    'q02',
    `SELECT s_acctbal, s_name, n_name, p_partkey, p_mfgr, s_address, s_phone, s_comment FROM part, supplier, partsupp, nation, region
     WHERE p_partkey = ps_partkey AND s_suppkey = ps_suppkey AND p_size = 15 AND p_type LIKE '%BRASS' AND s_nationkey = n_nationkey
       AND n_regionkey = r_regionkey AND r_name = 'EUROPE'
       AND ps_supplycost = (SELECT min(ps_supplycost) FROM partsupp, supplier, nation, region WHERE p_partkey = ps_partkey AND s_suppkey = ps_suppkey
                              AND s_nationkey = n_nationkey AND n_regionkey = r_regionkey AND r_name = 'EUROPE')
     ORDER BY s_acctbal DESC, n_name, s_name, p_partkey LIMIT 100`,
  ],
  [
    'q03',
    `SELECT l_orderkey, sum(${revenue}) AS revenue, o_orderdate, o_shippriority FROM customer, orders, lineitem
     WHERE c_mktsegment = 'BUILDING' AND c_custkey = o_custkey AND l_orderkey = o_orderkey AND o_orderdate < DATE '1995-03-15' AND l_shipdate > DATE '1995-03-15'
     GROUP BY l_orderkey, o_orderdate, o_shippriority ORDER BY revenue DESC, o_orderdate, l_orderkey LIMIT 10`,
  ],
  [
    'q04',
    `SELECT o_orderpriority, count(*) AS order_count FROM orders WHERE o_orderdate >= DATE '1993-07-01' AND o_orderdate < DATE '1995-10-01'
       AND EXISTS (SELECT * FROM lineitem WHERE l_orderkey = o_orderkey AND l_commitdate < l_receiptdate)
     GROUP BY o_orderpriority ORDER BY o_orderpriority`,
  ],
  [
    'q05',
    `SELECT n_name, sum(${revenue}) AS revenue FROM customer, orders, lineitem, supplier, nation, region
     WHERE c_custkey = o_custkey AND l_orderkey = o_orderkey AND l_suppkey = s_suppkey AND c_nationkey = s_nationkey AND s_nationkey = n_nationkey
       AND n_regionkey = r_regionkey AND r_name = 'ASIA' GROUP BY n_name ORDER BY revenue DESC`,
  ],
  [
    'q06',
    `SELECT sum(l_extendedprice * l_discount) AS revenue FROM lineitem
     WHERE l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01' AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24`,
  ],
  [
    'q07',
    `SELECT supp_nation, cust_nation, l_year, sum(volume) AS revenue
     FROM (SELECT n1.n_name AS supp_nation, n2.n_name AS cust_nation, extract(year FROM l_shipdate) AS l_year, ${revenue} AS volume
           FROM supplier, lineitem, orders, customer, nation n1, nation n2
           WHERE s_suppkey = l_suppkey AND o_orderkey = l_orderkey AND c_custkey = o_custkey AND s_nationkey = n1.n_nationkey AND c_nationkey = n2.n_nationkey
             AND ((n1.n_name = 'FRANCE' AND n2.n_name = 'GERMANY') OR (n1.n_name = 'GERMANY' AND n2.n_name = 'FRANCE'))) AS shipping
     GROUP BY supp_nation, cust_nation, l_year ORDER BY supp_nation, cust_nation, l_year`,
  ],
  [
    'q08',
    `SELECT o_year, sum(CASE WHEN nation = 'BRAZIL' THEN volume ELSE 0 END) / sum(volume) AS mkt_share
     FROM (SELECT extract(year FROM o_orderdate) AS o_year, ${revenue} AS volume, n2.n_name AS nation
           FROM part, supplier, lineitem, orders, customer, nation n1, nation n2, region
           WHERE p_partkey = l_partkey AND s_suppkey = l_suppkey AND l_orderkey = o_orderkey AND o_custkey = c_custkey AND c_nationkey = n1.n_nationkey
             AND n1.n_regionkey = r_regionkey AND r_name = 'AMERICA' AND s_nationkey = n2.n_nationkey AND p_type = 'ECONOMY ANODIZED STEEL') AS all_nations
     GROUP BY o_year ORDER BY o_year`,
  ],
  [
    'q09',
    `SELECT nation, o_year, sum(amount) AS sum_profit
     FROM (SELECT n_name AS nation, extract(year FROM o_orderdate) AS o_year, ${revenue} - ps_supplycost * l_quantity AS amount
           FROM part, supplier, lineitem, partsupp, orders, nation
           WHERE s_suppkey = l_suppkey AND ps_suppkey = l_suppkey AND ps_partkey = l_partkey AND p_partkey = l_partkey AND o_orderkey = l_orderkey
             AND s_nationkey = n_nationkey AND p_name LIKE '%green%') AS profit
     GROUP BY nation, o_year ORDER BY nation, o_year DESC`,
  ],
  [
    'q10',
    `SELECT c_custkey, c_name, sum(${revenue}) AS revenue, c_acctbal, n_name, c_address, c_phone, c_comment FROM customer, orders, lineitem, nation
     WHERE c_custkey = o_custkey AND l_orderkey = o_orderkey AND o_orderdate >= DATE '1993-10-01' AND o_orderdate < DATE '1995-01-01' AND l_returnflag = 'R'
       AND c_nationkey = n_nationkey
     GROUP BY c_custkey, c_name, c_acctbal, c_phone, n_name, c_address, c_comment ORDER BY revenue DESC, c_custkey LIMIT 20`,
  ],
  [
    'q11',
    `SELECT ps_partkey, sum(ps_supplycost * ps_availqty) AS value FROM partsupp, supplier, nation
     WHERE ps_suppkey = s_suppkey AND s_nationkey = n_nationkey AND n_name IN ('GERMANY', 'JAPAN', 'KENYA') GROUP BY ps_partkey
     HAVING sum(ps_supplycost * ps_availqty) > (SELECT sum(ps_supplycost * ps_availqty) * 0.05 FROM partsupp, supplier, nation
       WHERE ps_suppkey = s_suppkey AND s_nationkey = n_nationkey AND n_name IN ('GERMANY', 'JAPAN', 'KENYA'))
     ORDER BY value DESC`,
  ],
  [
    'q12',
    `SELECT l_shipmode, sum(CASE WHEN o_orderpriority = '1-URGENT' OR o_orderpriority = '2-HIGH' THEN 1 ELSE 0 END) AS high_line_count,
            sum(CASE WHEN o_orderpriority <> '1-URGENT' AND o_orderpriority <> '2-HIGH' THEN 1 ELSE 0 END) AS low_line_count
     FROM orders, lineitem WHERE o_orderkey = l_orderkey AND l_shipmode IN ('MAIL', 'SHIP') AND l_commitdate < l_receiptdate AND l_shipdate < l_commitdate
       AND l_receiptdate >= DATE '1994-01-01' AND l_receiptdate < DATE '1996-01-01'
     GROUP BY l_shipmode ORDER BY l_shipmode`,
  ],
  [
    'q13',
    `SELECT c_count, count(*) AS custdist
     FROM (SELECT c_custkey, count(o_orderkey) FROM customer LEFT OUTER JOIN orders ON c_custkey = o_custkey AND o_comment NOT LIKE '%special%requests%'
           GROUP BY c_custkey) AS c_orders (c_custkey, c_count)
     GROUP BY c_count ORDER BY custdist DESC, c_count DESC`,
  ],
  [
    'q14',
    `SELECT 100.00 * sum(CASE WHEN p_type LIKE 'PROMO%' THEN ${revenue} ELSE 0 END) / sum(${revenue}) AS promo_revenue
     FROM lineitem, part WHERE l_partkey = p_partkey AND l_shipdate >= DATE '1995-01-01' AND l_shipdate < DATE '1995-10-01'`,
  ],
  [
    'q15',
    `WITH revenue (supplier_no, total_revenue) AS (SELECT l_suppkey, sum(${revenue}) FROM lineitem
       WHERE l_shipdate >= DATE '1996-01-01' AND l_shipdate < DATE '1996-04-01' GROUP BY l_suppkey)
     SELECT s_suppkey, s_name, s_address, s_phone, total_revenue FROM supplier, revenue
     WHERE s_suppkey = supplier_no AND total_revenue = (SELECT max(total_revenue) FROM revenue) ORDER BY s_suppkey`,
  ],
  [
    'q16',
    `SELECT p_brand, p_type, p_size, count(DISTINCT ps_suppkey) AS supplier_cnt FROM partsupp, part
     WHERE p_partkey = ps_partkey AND p_brand <> 'Brand#33' AND p_type NOT LIKE 'MEDIUM POLISHED%' AND p_size IN (3, 9, 14, 15, 19)
       AND ps_suppkey NOT IN (SELECT s_suppkey FROM supplier WHERE s_comment LIKE '%Customer%Complaints%')
     GROUP BY p_brand, p_type, p_size ORDER BY supplier_cnt DESC, p_brand, p_type, p_size`,
  ],
  [
    'q17',
    `SELECT sum(l_extendedprice) / 7.0 AS avg_yearly FROM lineitem, part
     WHERE p_partkey = l_partkey AND p_brand = 'Brand#23' AND p_container = 'MED BOX'
       AND l_quantity < (SELECT 0.6 * avg(l_quantity) FROM lineitem WHERE l_partkey = p_partkey)`,
  ],
  [
    'q18',
    `SELECT c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice, sum(l_quantity) FROM customer, orders, lineitem
     WHERE o_orderkey IN (SELECT l_orderkey FROM lineitem GROUP BY l_orderkey HAVING sum(l_quantity) > 120) AND c_custkey = o_custkey AND o_orderkey = l_orderkey
     GROUP BY c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice ORDER BY o_totalprice DESC, o_orderdate, o_orderkey LIMIT 100`,
  ],
  [
    'q19',
    `SELECT sum(${revenue}) AS revenue FROM lineitem, part
     WHERE (p_partkey = l_partkey AND p_brand = 'Brand#13' AND p_container IN ('SM CASE', 'SM PKG') AND l_quantity BETWEEN 1 AND 30 AND p_size BETWEEN 1 AND 15
            AND l_shipmode IN ('AIR', 'REG AIR') AND l_shipinstruct = 'DELIVER IN PERSON')
        OR (p_partkey = l_partkey AND p_brand = 'Brand#23' AND p_container IN ('MED BOX', 'LG BOX') AND l_quantity BETWEEN 10 AND 40 AND p_size BETWEEN 1 AND 20
            AND l_shipmode IN ('AIR', 'REG AIR') AND l_shipinstruct = 'DELIVER IN PERSON')`,
  ],
  [
    'q20',
    `SELECT s_name, s_address FROM supplier, nation
     WHERE s_suppkey IN (SELECT ps_suppkey FROM partsupp WHERE ps_partkey IN (SELECT p_partkey FROM part WHERE p_name LIKE 'forest%')
         AND ps_availqty > (SELECT 0.5 * sum(l_quantity) FROM lineitem WHERE l_partkey = ps_partkey AND l_suppkey = ps_suppkey
           AND l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1996-01-01'))
       AND s_nationkey = n_nationkey AND n_name IN ('CANADA', 'FRANCE', 'GERMANY', 'JAPAN') ORDER BY s_name`,
  ],
  [
    'q21',
    `SELECT s_name, count(*) AS numwait FROM supplier, lineitem l1, orders, nation
     WHERE s_suppkey = l1.l_suppkey AND o_orderkey = l1.l_orderkey AND o_orderstatus = 'F' AND l1.l_receiptdate > l1.l_commitdate
       AND EXISTS (SELECT * FROM lineitem l2 WHERE l2.l_orderkey = l1.l_orderkey AND l2.l_suppkey <> l1.l_suppkey)
       AND NOT EXISTS (SELECT * FROM lineitem l3 WHERE l3.l_orderkey = l1.l_orderkey AND l3.l_suppkey <> l1.l_suppkey AND l3.l_receiptdate > l3.l_commitdate)
       AND s_nationkey = n_nationkey AND n_name IN ('SAUDI', 'JAPAN', 'GERMANY', 'PERU', 'KENYA', 'CHINA')
     GROUP BY s_name ORDER BY numwait DESC, s_name LIMIT 100`,
  ],
  [
    'q22',
    `SELECT cntrycode, count(*) AS numcust, sum(c_acctbal) AS totacctbal
     FROM (SELECT substring(c_phone FROM 1 FOR 2) AS cntrycode, c_acctbal FROM customer
           WHERE substring(c_phone FROM 1 FOR 2) IN ('13', '31', '23', '29', '30', '18', '17')
             AND c_acctbal > (SELECT avg(c_acctbal) FROM customer WHERE c_acctbal > 0.00 AND substring(c_phone FROM 1 FOR 2) IN ('13', '31', '23', '29', '30', '18', '17'))
             AND NOT EXISTS (SELECT * FROM orders WHERE o_custkey = c_custkey AND o_orderdate < DATE '1993-09-01')) AS custsale
     GROUP BY cntrycode ORDER BY cntrycode`,
  ],
];
