/**
 * What /metrics says.
 * Invariant: valid Prometheus text: one TYPE line a metric, all samples of a metric together, label values escaped.
 */
import { collectDefaultMetrics, Registry } from 'prom-client';
import { escapeLabel } from '../labels.ts';

/** The samples of one child process: name, with labels as in the text format, -> value. */
export interface ChildSamples {
  /** Added to every sample: `{ worker: '1' }`, `{ engine: 'shop' }`. */
  readonly labels: Readonly<Record<string, string>>;
  readonly values: Readonly<Record<string, number>>;
}

const help: Readonly<Record<string, string>> = {
  millrace_up: 'Whether a child process does its job.',
  millrace_restarts_total: 'How often a child process ended by itself and was started again.',
  millrace_client_connections: 'Client connections open now.',
  millrace_client_connections_total: 'Client connections accepted.',
  millrace_client_received_bytes_total: 'Bytes received from clients.',
  millrace_client_sent_bytes_total: 'Bytes sent to clients.',
  millrace_client_errors_total: 'Errors that Millrace itself sent to clients.',
  millrace_cancel_requests_total: 'Cancel requests received.',
  millrace_extended_statements_total: 'Statements that Millrace carried out itself.',
  millrace_held_requests_total: 'Requests that waited in Millrace while a migration changed their tables.',
  millrace_held_request_seconds_total: 'Time they waited.',
  millrace_pool_clients: 'Client connections of a pool, by state.',
  millrace_pool_servers: 'Server connections of a pool, by state.',
  millrace_pool_maxwait_seconds: 'How long the client that has waited longest for a server has waited.',
  millrace_pool_paused: 'Whether an operator has paused the database.',
  millrace_database_server_assignments_total: 'How often a client was given a server connection.',
  millrace_database_transactions_total: 'Transactions ended.',
  millrace_database_queries_total: 'Requests answered.',
  millrace_database_received_bytes_total: 'Bytes received from clients of the database.',
  millrace_database_sent_bytes_total: 'Bytes sent to clients of the database.',
  millrace_database_transaction_seconds_total: 'Time spent in transactions; measured in pooled modes.',
  millrace_database_query_seconds_total: 'Time spent on requests; measured in pooled modes.',
  millrace_database_wait_seconds_total: 'Time clients waited for a server connection.',
  millrace_epochs_total: 'Epochs committed.',
  millrace_rows_applied_total: 'Row changes applied to storage.',
  millrace_base_transactions_total: 'Transactions on ordinary tables of the upstream that epochs have taken in.',
  millrace_base_waits_total: 'How often a decoded transaction had to wait for a later epoch, because the snapshot did not see it yet.',
  millrace_base_waiting_transactions: 'Decoded transactions on ordinary tables that no epoch has taken in yet.',
  millrace_base_lag_bytes: 'WAL of the upstream since the first of them.',
  millrace_refreshes_total: 'Refreshes of stream tables, by what was done.',
  millrace_replication_lag_bytes: 'WAL of an origin that is not applied yet.',
  millrace_slot_retained_wal_bytes: 'WAL that an origin keeps for a source. Beyond 1 GiB the log has a warning.',
};

/** A registry of the default metrics of this process. */
export function processMetrics(): Registry {
  const registry = new Registry();
  // The default looks a hundred times a second, and wakes an idle process as often.
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: 100 });
  return registry;
}

/** Pure: samples of children as Prometheus text. Names that are not metric names are left out. */
export function renderSamples(children: readonly ChildSamples[]): string {
  const families = new Map<string, string[]>();
  for (const { labels, values } of children) {
    const own = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(value)}"`);
    for (const [key, value] of Object.entries(values)) {
      const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?$/s.exec(key);
      if (match === null || typeof value !== 'number') continue;
      const [, name = '', given = ''] = match;
      const all = [...own, ...(given.trim() === '' ? [] : [given.trim().replace(/,$/, '')])].join(',');
      const lines = families.get(name) ?? [];
      lines.push(`${name}${all === '' ? '' : `{${all}}`} ${showNumber(value)}`);
      families.set(name, lines);
    }
  }
  return [...families]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, lines]) => {
      const described = help[name] === undefined ? '' : `# HELP ${name} ${help[name]}\n`;
      return `${described}# TYPE ${name} ${name.endsWith('_total') ? 'counter' : 'gauge'}\n${lines.join('\n')}\n`;
    })
    .join('');
}

function showNumber(value: number): string {
  if (Number.isNaN(value)) return 'NaN';
  return Number.isFinite(value) ? String(value) : value > 0 ? '+Inf' : '-Inf';
}
