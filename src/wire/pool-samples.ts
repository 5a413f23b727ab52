/** Pools and statistics of a worker as Prometheus samples, with the same numbers as SHOW POOLS and SHOW STATS. Pure. */
import { escapeLabel } from '../labels.ts';
import type { DatabaseStats, PoolRow } from './pool/report.ts';

export function poolSamples(pools: readonly PoolRow[], stats: readonly DatabaseStats[]): Record<string, number> {
  const found: Record<string, number> = {};
  for (const pool of pools) {
    // Where somebody is just logging in the names may be anybody's invention, and each would be a new series.
    if (pool.clActive + pool.clWaiting + pool.svActive + pool.svIdle + pool.svUsed === 0) continue;
    const labels = `database="${escapeLabel(pool.database)}",user="${escapeLabel(pool.user)}"`;
    const clients = { active: pool.clActive, waiting: pool.clWaiting, cancel: pool.clActiveCancelReq };
    const servers = { active: pool.svActive, idle: pool.svIdle, used: pool.svUsed, login: pool.svLogin };
    for (const [state, count] of Object.entries(clients)) found[`millrace_pool_clients{${labels},state="${state}"}`] = count;
    for (const [state, count] of Object.entries(servers)) found[`millrace_pool_servers{${labels},state="${state}"}`] = count;
    found[`millrace_pool_maxwait_seconds{${labels}}`] = pool.maxwaitUs / 1e6;
    found[`millrace_pool_paused{${labels}}`] = pool.paused ? 1 : 0;
  }
  for (const one of stats) {
    const labels = `{database="${escapeLabel(one.database)}"}`;
    found[`millrace_database_server_assignments_total${labels}`] = one.totalServerAssignmentCount;
    found[`millrace_database_transactions_total${labels}`] = one.totalXactCount;
    found[`millrace_database_queries_total${labels}`] = one.totalQueryCount;
    found[`millrace_database_received_bytes_total${labels}`] = one.totalReceived;
    found[`millrace_database_sent_bytes_total${labels}`] = one.totalSent;
    found[`millrace_database_transaction_seconds_total${labels}`] = one.totalXactTime / 1e6;
    found[`millrace_database_query_seconds_total${labels}`] = one.totalQueryTime / 1e6;
    found[`millrace_database_wait_seconds_total${labels}`] = one.totalWaitTime / 1e6;
  }
  return found;
}
