/** What a worker counts, for /metrics. Invariant: counters only grow; gauges are named so. */
export interface Counters {
  connections: number;
  activeConnections: number;
  cancels: number;
  bytesFromClients: number;
  bytesToClients: number;
  extendedStatements: number;
  /** Requests that waited while a migration cut over, and for how long in all. */
  heldRequests: number;
  heldMs: number;
  errors: number;
}

export function newCounters(): Counters {
  return {
    connections: 0,
    activeConnections: 0,
    cancels: 0,
    bytesFromClients: 0,
    bytesToClients: 0,
    extendedStatements: 0,
    heldRequests: 0,
    heldMs: 0,
    errors: 0,
  };
}

/** As Prometheus samples. */
export function samples(counters: Counters): Record<string, number> {
  return {
    millrace_client_connections_total: counters.connections,
    millrace_client_connections: counters.activeConnections,
    millrace_cancel_requests_total: counters.cancels,
    millrace_client_received_bytes_total: counters.bytesFromClients,
    millrace_client_sent_bytes_total: counters.bytesToClients,
    millrace_extended_statements_total: counters.extendedStatements,
    millrace_held_requests_total: counters.heldRequests,
    millrace_held_request_seconds_total: counters.heldMs / 1e3,
    millrace_client_errors_total: counters.errors,
  };
}
