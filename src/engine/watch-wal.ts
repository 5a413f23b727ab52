/** WAL that an origin keeps for a source. Invariant: when it becomes much, and when it no longer is, that is said once. */
import type { Client } from 'pg';
import { slotUse } from '../replication/slots.ts';
import type { EngineContext } from './context.ts';
import type { SourceRow } from './source-row.ts';
import type { SourceRunner } from './source-runner.ts';

/** Bytes that are worth a warning. */
const muchWal = 1024 ** 3;

/** An origin keeps what has not been acknowledged, and its disk is not ours to fill. Answers whether it has been said that it is much. */
export async function watchWal(
  { log, metrics }: EngineContext,
  client: Client,
  { source, runner, warned }: { readonly source: SourceRow; readonly runner: SourceRunner; readonly warned: boolean },
): Promise<boolean> {
  const { name, slot } = source;
  const { retained: bytes, active } = await slotUse(client, slot);
  runner.seen(active);
  metrics[`millrace_slot_retained_wal_bytes{source=${JSON.stringify(name)}}`] = bytes;
  const isMuch = bytes > muchWal;
  if (isMuch && !warned) log.warn({ source: name, slot, bytes }, 'the origin keeps much WAL for this source');
  else if (!isMuch && warned) log.info({ source: name, slot, bytes }, 'the origin no longer keeps much WAL for this source');
  return isMuch;
}
