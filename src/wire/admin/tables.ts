/**
 * What the SHOW commands answer: reports of workers to rows. Pure.
 * Invariant: columns are PgBouncer's (1.18), with its names, types and order; then those of its later versions, then Millrace's own. A row
 * has a value for each column.
 */
import type { ServerAddress } from '../../config.ts';
import { fileSettings, fixedSettings, settings as knownSettings, showSetting } from '../../proxy-setting-names.ts';
import { version } from '../../version.ts';
import type { ClientRow, DatabaseStats, PoolRow, ServerRow } from '../pool/report.ts';
import { defaultProxySettings, type ProxySettings } from '../pool/settings.ts';
import type { Show } from './commands.ts';
import type { ServiceState } from './messages.ts';
import { addUp, averages, byDatabase } from './stats.ts';

export type ColumnType = 'text' | 'int4' | 'numeric';
export interface TableColumn {
  readonly name: string;
  readonly type: ColumnType;
}
export type Value = string | number | null;

export interface TableContext {
  readonly state: ServiceState;
  readonly settings: ProxySettings;
  readonly upstream: ServerAddress;
  /** ms since the epoch. */
  readonly now: number;
}

const of =
  (type: ColumnType) =>
  (names: string): readonly TableColumn[] =>
    names.split(' ').map((name) => ({ name, type }));
const text = of('text');
const int4 = of('int4');
const numeric = of('numeric');

const connection = [
  ...text('type user database state addr'),
  ...int4('port'),
  ...text('local_addr'),
  ...int4('local_port'),
  ...text('connect_time request_time'),
  ...int4('wait wait_us close_needed'),
  ...text('ptr link'),
  ...int4('remote_pid'),
  ...text('tls application_name'),
];
const sockets = int4('recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail');
const counted = 'xact_count query_count bytes_received bytes_sent xact_time query_time wait_time server_assignment_count';

/** What each SHOW command has; HELP is a notice and has none. */
export const columns: Readonly<Record<Exclude<Show, 'HELP'>, readonly TableColumn[]>> = {
  POOLS: [
    ...text('database user'),
    ...int4('cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel sv_being_canceled'),
    ...int4('sv_idle sv_used sv_tested sv_login maxwait maxwait_us'),
    ...text('pool_mode'),
    ...int4('paused'),
  ],
  CLIENTS: [...connection, ...int4('prepared_statements'), ...text('id pinned'), ...int4('worker')],
  SERVERS: [...connection, ...int4('prepared_statements'), ...text('id'), ...int4('worker')],
  STATS: [
    ...text('database'),
    ...numeric('total_xact_count total_query_count total_received total_sent total_xact_time total_query_time total_wait_time'),
    ...numeric('avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time avg_query_time avg_wait_time'),
    ...numeric('total_server_assignment_count avg_server_assignment_count'),
  ],
  STATS_TOTALS: [...text('database'), ...numeric(counted)],
  STATS_AVERAGES: [...text('database'), ...numeric(counted)],
  TOTALS: [...text('name'), ...numeric('value')],
  DATABASES: [
    ...text('name host'),
    ...int4('port'),
    ...text('database force_user'),
    ...int4('pool_size min_pool_size reserve_pool'),
    ...text('pool_mode'),
    ...int4('max_connections current_connections paused disabled'),
    ...int4('reserve_pool_size max_client_connections current_client_connections'),
  ],
  USERS: [
    ...text('name pool_mode'),
    ...int4('pool_size reserve_pool_size max_user_connections current_connections max_user_client_connections current_client_connections'),
  ],
  CONFIG: text('key value default changeable'),
  LISTS: [...text('list'), ...int4('items')],
  VERSION: text('version'),
  STATE: text('key value'),
  ACTIVE_SOCKETS: [...connection, ...sockets],
  SOCKETS: [...connection, ...sockets],
  WORKERS: [...int4('worker pid'), ...text('state'), ...int4('restarts clients servers')],
};

type Numbered<T> = T & { readonly worker: number };

/** The rows of a SHOW command. */
export function rows(what: Exclude<Show, 'HELP'>, context: TableContext): readonly (readonly Value[])[] {
  const { state } = context;
  const reports = state.workers.flatMap(({ number, report }) => (report === null ? [] : [{ worker: number, ...report }]));
  const clients = reports.flatMap(({ worker, clients }) => clients.map((one): Numbered<ClientRow> => ({ ...one, worker })));
  const servers = reports.flatMap(({ worker, servers }) => servers.map((one): Numbered<ServerRow> => ({ ...one, worker })));
  const pools = mergePools(reports.flatMap((report) => report.pools));
  const stats = byDatabase(reports.flatMap((report) => report.stats));
  switch (what) {
    case 'POOLS':
      return pools.map(poolRow);
    case 'CLIENTS':
      return clients.map((one) => [...clientConnection(one), one.preparedStatements, one.id, one.pinned, one.worker]);
    case 'SERVERS':
      return servers.map((one) => [...serverConnection(one, clients), one.preparedStatements, one.id, one.worker]);
    case 'SOCKETS':
    case 'ACTIVE_SOCKETS':
      return [...clients.map(clientConnection), ...servers.map((one) => serverConnection(one, clients))].map((row) => [
        ...row,
        ...sockets.map(() => 0),
      ]);
    case 'STATS':
    case 'STATS_TOTALS':
    case 'STATS_AVERAGES':
      return stats.map((one) => [one.database, ...statsRow(what, one, context)]);
    case 'TOTALS':
      return totals(stats, context);
    case 'DATABASES':
      return databases(context, pools, clients, servers);
    case 'USERS':
      return users(context.settings, clients, servers);
    case 'CONFIG':
      return config(context);
    case 'LISTS':
      return lists(context, pools, clients, servers);
    case 'VERSION':
      return [[`Millrace ${version}`]];
    case 'STATE':
      return [
        ['active', state.pausedAll ? 'no' : 'yes'],
        ['paused', state.pausedAll ? 'yes' : 'no'],
        ['suspended', 'no'],
      ];
    case 'WORKERS':
      return state.workers.map(({ number, pid, ready, restarts, report }) => [
        number,
        pid,
        !ready ? 'starting' : report === null ? 'no answer' : 'ready',
        restarts,
        report?.clients.length ?? null,
        report?.servers.length ?? null,
      ]);
  }
}

/** One row a pool, from those of all workers. */
function mergePools(all: readonly PoolRow[]): readonly PoolRow[] {
  const merged = new Map<string, PoolRow>();
  for (const row of all) {
    const key = JSON.stringify([row.database, row.user, row.poolMode]);
    const other = merged.get(key);
    merged.set(
      key,
      other === undefined
        ? row
        : {
            ...row,
            clActive: row.clActive + other.clActive,
            clWaiting: row.clWaiting + other.clWaiting,
            clActiveCancelReq: row.clActiveCancelReq + other.clActiveCancelReq,
            svActive: row.svActive + other.svActive,
            svIdle: row.svIdle + other.svIdle,
            svUsed: row.svUsed + other.svUsed,
            svLogin: row.svLogin + other.svLogin,
            maxwaitUs: Math.max(row.maxwaitUs, other.maxwaitUs),
            paused: row.paused || other.paused,
          },
    );
  }
  return [...merged.values()].sort((a, b) => compare(a.database, b.database) || compare(a.user, b.user));
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
const yes = (value: boolean): number => (value ? 1 : 0);
const whole = (us: number): readonly [number, number] => [Math.floor(us / 1e6), Math.round(us % 1e6)];

function poolRow(pool: PoolRow): readonly Value[] {
  return [
    pool.database,
    pool.user,
    pool.clActive,
    pool.clWaiting,
    pool.clActiveCancelReq,
    0,
    pool.svActive,
    0,
    0,
    pool.svIdle,
    pool.svUsed,
    0,
    pool.svLogin,
    ...whole(pool.maxwaitUs),
    pool.poolMode,
    yes(pool.paused),
  ];
}

const time = (ms: number): string => `${new Date(ms).toISOString().slice(0, 19).replace('T', ' ')} UTC`;

function clientConnection(one: ClientRow): readonly Value[] {
  return [
    ...['C', one.user, one.database, one.state, one.address, one.port, one.localAddress, one.localPort],
    ...[time(one.connectTime), time(one.requestTime), ...whole(one.waitUs), 0, one.id, one.link, 0, one.tls, one.applicationName],
  ];
}

function serverConnection(one: ServerRow, clients: readonly ClientRow[]): readonly Value[] {
  const client = one.link === '' ? undefined : clients.find(({ id }) => id === one.link);
  return [
    ...['S', one.user, one.database, one.state, one.address, one.port, one.localAddress, one.localPort],
    ...[time(one.connectTime), time(one.requestTime), 0, 0, 0, one.id, one.link, one.remotePid, one.tls, client?.applicationName ?? ''],
  ];
}

function statsRow(what: 'STATS' | 'STATS_TOTALS' | 'STATS_AVERAGES', one: DatabaseStats, { state, now }: TableContext): readonly Value[] {
  const earlier = byDatabase(state.earlier.stats).find(({ database }) => database === one.database);
  const avg = averages(one, earlier, now - state.earlier.at);
  const total = [
    ...[one.totalXactCount, one.totalQueryCount, one.totalReceived, one.totalSent],
    ...[one.totalXactTime, one.totalQueryTime, one.totalWaitTime],
  ];
  const average = [avg.xactCount, avg.queryCount, avg.received, avg.sent, avg.xactTime, avg.queryTime, avg.waitTime];
  if (what === 'STATS_TOTALS') return [...total, one.totalServerAssignmentCount];
  if (what === 'STATS_AVERAGES') return [...average, avg.serverAssignmentCount];
  return [...total, ...average, one.totalServerAssignmentCount, avg.serverAssignmentCount];
}

function totals(stats: readonly DatabaseStats[], context: TableContext): readonly (readonly Value[])[] {
  const all = { database: '', ...addUp(stats) };
  const earlier = [{ database: '', ...addUp(context.state.earlier.stats) }];
  const values = statsRow('STATS', all, { ...context, state: { ...context.state, earlier: { ...context.state.earlier, stats: earlier } } });
  // PgBouncer has two names of its own here.
  const named = (name: string): string => name.replace(/_(received|recv)$/, '_client_bytes').replace(/_sent$/, '_server_bytes');
  return columns.STATS.slice(1).map(({ name }, index) => [named(name), values[index] ?? 0]);
}

function databases(
  { state, settings, upstream }: TableContext,
  pools: readonly PoolRow[],
  clients: readonly ClientRow[],
  servers: readonly ServerRow[],
): readonly (readonly Value[])[] {
  const names = new Set([upstream.database, ...Object.keys(settings.perDatabase), ...state.paused, ...state.disabled]);
  for (const { database } of pools) names.add(database);
  names.delete(settings.adminDatabase);
  return [...names].sort().map((name) => {
    const own = Object.hasOwn(settings.perDatabase, name) ? (settings.perDatabase[name] ?? {}) : {};
    const reserve = own.reservePoolSize ?? settings.reservePoolSize;
    return [
      name,
      upstream.host,
      upstream.port,
      name,
      null,
      own.poolSize ?? settings.defaultPoolSize,
      own.minPoolSize ?? settings.minPoolSize,
      reserve,
      own.poolMode ?? null,
      own.maxDbConnections ?? settings.maxDbConnections,
      servers.filter(({ database }) => database === name).length,
      yes(state.pausedAll || state.paused.includes(name)),
      yes(state.disabled.includes(name)),
      reserve,
      own.maxDbClientConnections ?? settings.maxDbClientConnections,
      clients.filter(({ database }) => database === name).length,
    ];
  });
}

function users(settings: ProxySettings, clients: readonly ClientRow[], servers: readonly ServerRow[]): readonly (readonly Value[])[] {
  const names = new Set([...Object.keys(settings.users), ...Object.keys(settings.perUser), ...clients.map(({ user }) => user)]);
  return [...names].sort().map((name) => {
    const own = Object.hasOwn(settings.perUser, name) ? (settings.perUser[name] ?? {}) : {};
    return [
      name,
      own.poolMode ?? null,
      own.poolSize ?? null,
      own.reservePoolSize ?? null,
      own.maxUserConnections ?? settings.maxUserConnections,
      servers.filter(({ user }) => user === name).length,
      own.maxUserClientConnections ?? settings.maxUserClientConnections,
      clients.filter(({ user }) => user === name).length,
    ];
  });
}

function config({ settings, state }: TableContext): readonly (readonly Value[])[] {
  const reloaded = new Set<string>([...fileSettings, 'conffile']);
  const changeable = (name: string): string => (fixedSettings.has(name) || name === 'conffile' ? 'no' : 'yes');
  const plain = knownSettings.map((one) => [
    one.name,
    showSetting(settings, one),
    showSetting(defaultProxySettings, one),
    changeable(one.name),
  ]);
  const given: Record<string, string> = { auth_file: '', client_tls_sslmode: 'disable', ...state.given };
  const places = Object.entries(given).map(([name, value]) => [
    name,
    value,
    name === 'client_tls_sslmode' ? 'disable' : '',
    reloaded.has(name) ? changeable(name) : 'no',
  ]);
  return [...plain, ...places].sort(([a = ''], [b = '']) => compare(a, b));
}

function lists(
  { settings, state, upstream }: TableContext,
  pools: readonly PoolRow[],
  clients: readonly ClientRow[],
  servers: readonly ServerRow[],
): readonly (readonly Value[])[] {
  const login = clients.filter((one) => one.state === 'login').length;
  const free = servers.filter((one) => one.state === 'idle').length;
  return [
    ['databases', databases({ settings, state, upstream, now: 0 }, pools, clients, servers).length],
    ['users', users(settings, clients, servers).length],
    ['pools', pools.length],
    ['free_clients', 0],
    ['used_clients', clients.length - login],
    ['login_clients', login],
    ['free_servers', free],
    ['used_servers', servers.length - free],
    ...['dns_names', 'dns_zones', 'dns_queries', 'dns_pending'].map((name) => [name, 0]),
    ['workers', state.workers.length],
  ];
}
