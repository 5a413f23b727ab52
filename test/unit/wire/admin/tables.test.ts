/** What the SHOW commands answer. */
import { describe, expect, it } from 'vitest';
import type { ServiceState } from '../../../../src/wire/admin/messages.ts';
import { columns, rows, type TableContext } from '../../../../src/wire/admin/tables.ts';
import { describeColumns, encodeValue } from '../../../../src/wire/admin/values.ts';
import type { ClientRow, DatabaseStats, PoolRow, ServerRow, WorkerReport } from '../../../../src/wire/pool/report.ts';
import { defaultProxySettings } from '../../../../src/wire/pool/settings.ts';

const place = { address: '10.0.0.1', port: 5, localAddress: '10.0.0.2', localPort: 6, connectTime: 0, requestTime: 61_000, tls: '' };
const client: ClientRow = {
  ...place,
  id: 'c1',
  user: 'u',
  database: 'shop',
  state: 'waiting',
  waitUs: 2_500_000,
  link: 's1',
  applicationName: 'app',
  preparedStatements: 2,
  pinned: 'LISTEN',
};
const server: ServerRow = {
  ...place,
  id: 's1',
  user: 'u',
  database: 'shop',
  state: 'idle',
  link: 'c1',
  remotePid: 77,
  preparedStatements: 1,
};
const pool: PoolRow = {
  database: 'shop',
  user: 'u',
  poolMode: 'transaction',
  clActive: 1,
  clWaiting: 2,
  clActiveCancelReq: 0,
  svActive: 3,
  svIdle: 4,
  svUsed: 0,
  svLogin: 1,
  maxwaitUs: 1_000_001,
  paused: false,
};
const stats: DatabaseStats = {
  database: 'shop',
  totalServerAssignmentCount: 10,
  totalXactCount: 100,
  totalQueryCount: 200,
  totalReceived: 1_000,
  totalSent: 2_000,
  totalXactTime: 5_000,
  totalQueryTime: 4_000,
  totalWaitTime: 30,
};
const report: WorkerReport = { pools: [pool], clients: [client], servers: [server], stats: [stats] };

function context(changes: Partial<ServiceState> = {}): TableContext {
  const state: ServiceState = {
    workers: [
      { number: 1, pid: 11, ready: true, restarts: 0, report },
      { number: 2, pid: 12, ready: true, restarts: 3, report },
      { number: 3, pid: 13, ready: true, restarts: 0, report: null },
    ],
    pausedAll: false,
    paused: ['shop'],
    disabled: ['old'],
    given: { listen_port: '6875', auth_file: '/u' },
    earlier: { at: 0, stats: [{ ...stats, totalXactCount: 50 }] },
    ...changes,
  };
  const settings = { ...defaultProxySettings, perDatabase: { shop: { poolSize: 3 } }, perUser: { u: { poolMode: 'statement' as const } } };
  const upstream = { host: 'h', port: 5432, user: 'postgres', database: 'postgres', ssl: { mode: 'disable' as const } };
  return { state, settings, upstream, now: 10_000 };
}

const table = (what: keyof typeof columns, changes: Partial<ServiceState> = {}): Record<string, unknown>[] =>
  rows(what, context(changes)).map((row) => Object.fromEntries(columns[what].map(({ name }, index) => [name, row[index]])));

describe('SHOW', () => {
  it.each(Object.keys(columns) as (keyof typeof columns)[])('%s has a value of the right type for each column', (what) => {
    for (const row of rows(what, context())) {
      expect(row).toHaveLength(columns[what].length);
      for (const [index, { type }] of columns[what].entries()) {
        const value = row[index];
        if (value !== null) expect(typeof value).toBe(type === 'text' ? 'string' : 'number');
      }
    }
  });

  it('begins with the columns of PgBouncer 1.18', () => {
    const names = (what: keyof typeof columns): string => columns[what].map(({ name }) => name).join('|');
    const connection =
      'type|user|database|state|addr|port|local_addr|local_port|connect_time|request_time|wait|wait_us|close_needed|ptr|link|remote_pid|tls|application_name';
    expect(names('POOLS')).toMatch(
      /^database\|user\|cl_active\|cl_waiting\|cl_active_cancel_req\|cl_waiting_cancel_req\|sv_active\|sv_active_cancel\|sv_being_canceled\|sv_idle\|sv_used\|sv_tested\|sv_login\|maxwait\|maxwait_us\|pool_mode\|/,
    );
    expect(names('CLIENTS').startsWith(`${connection}|`)).toBe(true);
    expect(names('SERVERS').startsWith(`${connection}|`)).toBe(true);
    expect(names('STATS')).toMatch(
      /^database\|total_xact_count\|total_query_count\|total_received\|total_sent\|total_xact_time\|total_query_time\|total_wait_time\|avg_xact_count\|avg_query_count\|avg_recv\|avg_sent\|avg_xact_time\|avg_query_time\|avg_wait_time\|/,
    );
    expect(names('DATABASES')).toMatch(
      /^name\|host\|port\|database\|force_user\|pool_size\|min_pool_size\|reserve_pool\|pool_mode\|max_connections\|current_connections\|paused\|disabled\|/,
    );
    expect(names('CONFIG')).toBe('key|value|default|changeable');
    expect(names('LISTS')).toBe('list|items');
  });

  it('adds up pools of all workers', () => {
    expect(table('POOLS')).toEqual([
      expect.objectContaining({
        database: 'shop',
        cl_active: 2,
        cl_waiting: 4,
        sv_active: 6,
        sv_idle: 8,
        sv_login: 2,
        maxwait: 1,
        maxwait_us: 1,
      }),
    ]);
  });

  it('lists clients and servers of all workers', () => {
    expect(table('CLIENTS')).toMatchObject([
      {
        type: 'C',
        worker: 1,
        wait: 2,
        wait_us: 500_000,
        connect_time: '1970-01-01 00:00:00 UTC',
        request_time: '1970-01-01 00:01:01 UTC',
        pinned: 'LISTEN',
        id: 'c1',
      },
      { worker: 2 },
    ]);
    expect(table('SERVERS')[0]).toMatchObject({ type: 'S', remote_pid: 77, application_name: 'app', link: 'c1' });
    expect(table('SOCKETS')).toHaveLength(4);
  });

  it('averages over the time since the earlier numbers', () => {
    // 200 transactions now, 50 then, in 10 s; the times and queries of the same span.
    expect(table('STATS')[0]).toMatchObject({
      total_xact_count: 200,
      avg_xact_count: 15,
      avg_query_count: 20,
      avg_xact_time: 33,
      avg_query_time: 20,
      avg_recv: 100,
    });
    expect(table('TOTALS')).toContainEqual({ name: 'avg_xact_count', value: 15 });
    expect(table('TOTALS')).toContainEqual({ name: 'total_client_bytes', value: 2_000 });
    // A worker that was started again has counted less than before.
    expect(table('STATS', { earlier: { at: 0, stats: [{ ...stats, totalXactCount: 1_000 }] } })[0]).toMatchObject({ avg_xact_count: 0 });
  });

  it('knows databases from settings, commands and pools', () => {
    expect(table('DATABASES').map(({ name, pool_size, paused, disabled }) => [name, pool_size, paused, disabled])).toEqual([
      ['old', 20, 0, 1],
      ['postgres', 20, 0, 0],
      ['shop', 3, 1, 0],
    ]);
    expect(table('USERS')).toEqual([
      expect.objectContaining({ name: 'u', pool_mode: 'statement', current_connections: 2, current_client_connections: 2 }),
    ]);
    expect(table('STATE', { pausedAll: true })).toContainEqual({ key: 'paused', value: 'yes' });
    expect(table('WORKERS').map(({ worker, state, clients }) => [worker, state, clients])).toEqual([
      [1, 'ready', 1],
      [2, 'ready', 1],
      [3, 'no answer', null],
    ]);
  });

  it('shows settings with their defaults, and no secrets', () => {
    const config = table('CONFIG');
    expect(config).toContainEqual({ key: 'query_wait_timeout', value: '120', default: '120', changeable: 'yes' });
    expect(config).toContainEqual({ key: 'listen_port', value: '6875', default: '', changeable: 'no' });
    expect(config).toContainEqual({ key: 'auth_file', value: '/u', default: '', changeable: 'yes' });
    expect(config).toContainEqual(expect.objectContaining({ key: 'admin_database', changeable: 'no' }));
  });
});

describe('values', () => {
  it('have a binary form', () => {
    expect(encodeValue(258, 'int4', 1)).toEqual(Buffer.from([0, 0, 1, 2]));
    expect(encodeValue(0, 'numeric', 1)).toEqual(Buffer.alloc(8));
    // 1,2345,6789: three digits to the base 10,000, the first of weight 2.
    expect(encodeValue(123_456_789, 'numeric', 1)).toEqual(Buffer.from([0, 3, 0, 2, 0, 0, 0, 0, 0, 1, 0x09, 0x29, 0x1a, 0x85]));
    // As Postgres: 20000 is one digit, 2, of weight 1.
    expect(encodeValue(20_000, 'numeric', 1)).toEqual(Buffer.from([0, 1, 0, 1, 0, 0, 0, 0, 0, 2]));
    expect(encodeValue('é', 'text', 1)?.toString()).toBe('é');
    expect(encodeValue(null, 'int4', 1)).toBeNull();
    expect(encodeValue(7, 'numeric', 0)?.toString()).toBe('7');
    expect(describeColumns(columns.LISTS, () => 1)).toMatchObject([{ typeOid: 25 }, { typeOid: 23, typeLength: 4, format: 1 }]);
  });
});
