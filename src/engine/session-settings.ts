/**
 * Planner settings of the session that runs epochs.
 * Invariant: changes are applied by nested loops into indexes, views are maintained with the planner free. Deltas have no statistics,
 * so with joins free the planner hashes the whole target for a few rows.
 */
import { pinnedSettings } from '../replication/settings.ts';

export const epochSettings: Readonly<Record<string, string>> = {
  ...pinnedSettings,
  search_path: '',
  jit: 'off',
  // What a statement has changed is kept for its triggers: in memory, as far as the changes of one epoch usually go.
  work_mem: '16MB',
  random_page_cost: '1.1',
  from_collapse_limit: '16',
  join_collapse_limit: '16',
  enable_hashjoin: 'off',
  enable_mergejoin: 'off',
  enable_seqscan: 'off',
  // Statements with arrays for parameters: a plan for any number of rows is right for all small ones, as joins go by index anyway.
  plan_cache_mode: 'force_generic_plan',
  // A lost tail of epochs comes again from the origin: positions are part of the epoch, and acknowledged only once flushed.
  synchronous_commit: 'off',
  // This session holds the leader's lock: when the leader's host is gone without a word, the server has to notice and let another lead.
  tcp_keepalives_idle: '5',
  tcp_keepalives_interval: '2',
  tcp_keepalives_count: '3',
  statement_timeout: '0',
  idle_in_transaction_session_timeout: '0',
};

/** Said within a transaction before views are maintained. One statement that can be prepared, and is good in a pipeline that no BEGIN precedes. */
export const freePlanner =
  "SELECT set_config('enable_hashjoin', 'on', true), set_config('enable_mergejoin', 'on', true), set_config('enable_seqscan', 'on', true)";

/** Of sessions that copy tables: as in epochs, what is applied to a storage goes into its index. What they commit is on disk. */
export const copySettings: Readonly<Record<string, string>> = { ...epochSettings, synchronous_commit: 'on' };
