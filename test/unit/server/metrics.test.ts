import { describe, expect, it } from 'vitest';
import { renderSamples } from '../../../src/http/metrics.ts';

describe('renderSamples', () => {
  it('groups the samples of all children by metric and adds their labels', () => {
    const text = renderSamples([
      { labels: { worker: '1' }, values: { millrace_connections: 2, 'millrace_bytes_total{direction="in"}': 10 } },
      { labels: { worker: '2' }, values: { millrace_connections: 0, 'millrace_bytes_total{direction="in"}': 7 } },
      {
        labels: { engine: 'a"b\\c\nd' },
        values: { 'millrace_replication_lag_bytes{source="s"}': Number.POSITIVE_INFINITY, 'not a name': 1 },
      },
    ]);
    expect(text).toBe(`# HELP millrace_bytes_total Bytes forwarded.
# TYPE millrace_bytes_total counter
millrace_bytes_total{worker="1",direction="in"} 10
millrace_bytes_total{worker="2",direction="in"} 7
# HELP millrace_connections Client connections open now.
# TYPE millrace_connections gauge
millrace_connections{worker="1"} 2
millrace_connections{worker="2"} 0
# HELP millrace_replication_lag_bytes WAL of an origin that is not applied yet.
# TYPE millrace_replication_lag_bytes gauge
millrace_replication_lag_bytes{engine="a\\"b\\\\c\\nd",source="s"} +Inf
`);
  });
});
