import { describe, expect, it } from 'vitest';
import { renderSamples } from '../../../src/http/metrics.ts';

describe('renderSamples', () => {
  it('groups the samples of all children by metric and adds their labels', () => {
    const text = renderSamples([
      { labels: { worker: '1' }, values: { millrace_client_connections: 2, 'millrace_client_sent_bytes_total{kind="in"}': 10 } },
      { labels: { worker: '2' }, values: { millrace_client_connections: 0, 'millrace_client_sent_bytes_total{kind="in"}': 7 } },
      {
        labels: { engine: 'a"b\\c\nd' },
        values: { 'millrace_replication_lag_bytes{source="s"}': Number.POSITIVE_INFINITY, 'not a name': 1 },
      },
    ]);
    expect(text).toBe(`# HELP millrace_client_connections Client connections open now.
# TYPE millrace_client_connections gauge
millrace_client_connections{worker="1"} 2
millrace_client_connections{worker="2"} 0
# HELP millrace_client_sent_bytes_total Bytes sent to clients.
# TYPE millrace_client_sent_bytes_total counter
millrace_client_sent_bytes_total{worker="1",kind="in"} 10
millrace_client_sent_bytes_total{worker="2",kind="in"} 7
# HELP millrace_replication_lag_bytes WAL of an origin that is not applied yet.
# TYPE millrace_replication_lag_bytes gauge
millrace_replication_lag_bytes{engine="a\\"b\\\\c\\nd",source="s"} +Inf
`);
  });
});
