/** The target a sink's definition describes. Invariant: secrets are opened here, and live no longer than the target. */
import { openAddress } from '../catalog/connection-address.ts';
import type { SinkThreadConfig } from './messages.ts';
import { postgresTarget } from './postgres/target.ts';
import type { StoredConnection, StoredSink } from './sink-catalog.ts';
import { type Target, TargetError } from './target.ts';

/** Throws TargetError when it cannot be had as things are: a secret that cannot be opened, a connection that is gone. */
export async function openTarget(sink: StoredSink, config: SinkThreadConfig): Promise<Target> {
  const { target, key } = sink.definition;
  try {
    switch (target.type) {
      case 'postgres': {
        const address = openAddress(config.secretKey, requireConnection(sink).options, sink.secrets);
        return postgresTarget({ name: nameOf(sink, config), address, target, key });
      }
      default:
        throw new TargetError('permanent', 'not yet');
    }
  } catch (error) {
    if (error instanceof TargetError) throw error;
    throw new TargetError('permanent', error instanceof Error ? error.message : String(error), { cause: error });
  }
}

/** The same sink has the same name in every process, and no other sink has it. */
const nameOf = (sink: StoredSink, config: SinkThreadConfig): string => `millrace-${config.database}-${sink.id}`;

function requireConnection(sink: StoredSink): StoredConnection {
  const found = sink.connections[sink.connectionId ?? ''];
  if (found === undefined) throw new TargetError('permanent', 'the connection of the sink is gone');
  return found;
}
