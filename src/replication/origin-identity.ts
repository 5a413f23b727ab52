/**
 * Whether an origin still is the one whose WAL was read.
 * Invariant: a position of the WAL means the same as long as the system identifier is the same and the timeline has not been left before it.
 * Source: Postgres documentation, 53.4 (IDENTIFY_SYSTEM, TIMELINE_HISTORY) and 25.3.5 (timelines).
 */
import type { ServerAddress } from '../config.ts';
import { formatLsn, type Lsn, parseLsn } from './lsn.ts';
import { connectRaw } from './raw-connection.ts';

export interface OriginIdentity {
  readonly systemIdentifier: string;
  readonly timeline: number;
  /** End of what is on disk. */
  readonly flushed: Lsn;
  /** Where it left each earlier timeline. */
  readonly left: readonly { readonly timeline: number; readonly at: Lsn }[];
}

export async function identifyOrigin(address: ServerAddress): Promise<OriginIdentity> {
  const connection = await connectRaw(address, {
    replication: true,
    applicationName: 'millrace identify',
    settings: { statement_timeout: '10000' },
  });
  try {
    const [system] = await connection.query('IDENTIFY_SYSTEM');
    const [systemIdentifier = '', timelineText = '1', flushed = '0/0'] = system?.rows[0] ?? [];
    const timeline = Number(timelineText);
    const history = timeline > 1 ? (await connection.query(`TIMELINE_HISTORY ${timeline}`))[0]?.rows[0]?.[1] : '';
    return {
      systemIdentifier: systemIdentifier ?? '',
      timeline,
      flushed: parseLsn(flushed ?? '0/0'),
      left: parseHistory(historyText(history ?? '')),
    };
  } finally {
    await connection.close();
  }
}

/** The content comes as bytea where the server says so. */
const historyText = (content: string): string =>
  content.startsWith('\\x') ? Buffer.from(content.slice(2), 'hex').toString('utf8') : content;

/** Lines of "timeline, tab, position, tab, reason". */
export function parseHistory(content: string): { readonly timeline: number; readonly at: Lsn }[] {
  return content.split('\n').flatMap((line) => {
    const [, timeline, at] = /^\s*(\d+)\s+([0-9A-Fa-f]+\/[0-9A-Fa-f]+)/.exec(line) ?? [];
    return timeline === undefined || at === undefined ? [] : [{ timeline: Number(timeline), at: parseLsn(at) }];
  });
}

/** Why what was read up to `reached` on `before` is not a part of what the origin has now; null: it is. */
export function whyNotTheSame(
  before: { readonly systemIdentifier: string | null; readonly timeline: number | null; readonly reached: Lsn },
  now: OriginIdentity,
): string | null {
  if (before.systemIdentifier !== null && before.systemIdentifier !== now.systemIdentifier)
    return `the origin is another server: its system identifier is ${now.systemIdentifier}, it was ${before.systemIdentifier}`;
  const left = now.left.find(({ timeline }) => timeline === before.timeline);
  if (before.timeline !== null && before.timeline !== now.timeline && left === undefined)
    return `the origin is on timeline ${now.timeline}, which does not come from timeline ${before.timeline}`;
  if (left !== undefined && left.at < before.reached)
    return `the origin left timeline ${left.timeline} at ${formatLsn(left.at)}, but what came after it, up to ${formatLsn(before.reached)}, has been read`;
  if (now.flushed < before.reached)
    return `the origin was restored to an earlier point: its WAL ends at ${formatLsn(now.flushed)}, ${formatLsn(before.reached)} has been read`;
  return null;
}
