/** What one run of a migration knows of itself. Invariant: all of it can be had from the catalog again; nothing here outlives the sessions. */
import { quoteLiteral } from '../sql/quote.ts';
import { noteProgress, type Progress } from './catalog.ts';
import type { ChangeFeed } from './change-feed.ts';
import type { MigrationSessions } from './sessions.ts';
import type { WalMark } from './throttle.ts';
import type { Key } from './touched.ts';

/** Where it is, as long as its sessions last. */
export class Course {
  readonly sessions: MigrationSessions;
  readonly feed: ChangeFeed;
  copiedTo: Key | null;
  verifiedTo: Key | null;
  found: number;
  windowEndsAt: number | null;
  /** Of the next piece. */
  rows = 2_000;
  mostRows: number | null = null;
  walMarks: readonly WalMark[] = [];
  attempts = 0;
  /** By performance.now(). */
  notBefore = 0;
  nextLook = 0;
  nextNote = 0;
  noted = '';
  #throttle: string | null = null;

  constructor(sessions: MigrationSessions, feed: ChangeFeed, { copiedTo, verifiedTo, found, windowEndsAt }: Progress) {
    this.sessions = sessions;
    this.feed = feed;
    this.copiedTo = copiedTo;
    this.verifiedTo = verifiedTo;
    this.found = found;
    this.windowEndsAt = windowEndsAt;
  }

  async noteThrottle(id: number, reason: string | null): Promise<void> {
    if (reason === this.#throttle) return;
    this.#throttle = reason;
    await noteProgress(this.sessions.work, id, `throttled_by = ${reason === null ? 'NULL' : quoteLiteral(reason)}`);
  }
}
