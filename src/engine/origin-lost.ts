/** Whether a source can go on where its stream ended, and what is said when it cannot. Pure. */
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import { type OriginIdentity, whyNotTheSame } from '../replication/origin-identity.ts';
import type { SlotInfo } from '../replication/slots.ts';
import type { SourceRow } from './source-row.ts';

/** The stream cannot go on where it ended. */
export class OriginLostError extends Error {
  readonly code = '55000';
  /** By a resynchronisation: tables are known by OID, so it has to be the same server. */
  readonly isMendable: boolean;
  constructor(message: string, isMendable: boolean) {
    super(message);
    this.isMendable = isMendable;
  }
}

/** Null: it can. `applied`: the end of what is in storage; `reached`: no more than that has been acknowledged. */
export function whyLost(
  source: SourceRow,
  slot: SlotInfo | undefined,
  identity: OriginIdentity,
  { applied, reached }: { readonly applied: Lsn; readonly reached: Lsn },
): OriginLostError | null {
  const mend = `; ALTER SOURCE ${source.name} RESYNC brings its tables up to date`;
  const other = whyNotTheSame({ ...source, reached: applied }, identity);
  if (other !== null) {
    const isSame = source.systemIdentifier === null || source.systemIdentifier === identity.systemIdentifier;
    return new OriginLostError(isSame ? other + mend : `${other}; DROP SOURCE and create it again`, isSame);
  }
  if (slot === undefined) return new OriginLostError(`replication slot "${source.slot}" no longer exists on the origin${mend}`, true);
  if (slot.confirmedFlush !== undefined && slot.confirmedFlush > reached && slot.walStatus !== 'lost') {
    return new OriginLostError(
      `replication slot "${source.slot}" is at ${formatLsn(slot.confirmedFlush)}, only ${formatLsn(reached)} has been reached here: someone else read from it, or this database was restored to an earlier point${mend}`,
      true,
    );
  }
  if (slot.walStatus !== 'lost') return null;
  return new OriginLostError(
    `replication slot "${source.slot}" has been invalidated: ${slot.invalidationReason ?? 'its WAL was removed'}${mend}`,
    true,
  );
}
