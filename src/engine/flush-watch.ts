/**
 * Epochs commit without waiting for the disk; the origin is told of them once the upstream's WAL is flushed past them.
 * Invariant: nothing is called flushed that a crash of the upstream could still take back.
 */
import type { Client } from 'pg';
import { type Lsn, parseLsn } from '../replication/lsn.ts';
import { reach, reachSoon } from './fault-points.ts';

interface Waiting {
  /** Where the upstream's WAL ended when they had committed. */
  readonly lsn: Lsn;
  readonly callbacks: readonly (() => void)[];
}

export class FlushWatch {
  readonly #admin: Client;
  /** Committed since the last look. */
  #committed: (() => void)[] = [];
  /** In the order of their LSN. */
  readonly #waiting: Waiting[] = [];
  #looking = false;

  constructor(admin: Client) {
    this.#admin = admin;
  }

  /** Calls back once everything committed so far is on disk. */
  call(back: () => void): void {
    this.#committed.push(back);
  }

  /** To be called regularly: asks one question if there is something to know, and calls back. */
  async look(): Promise<void> {
    if (this.#looking || (this.#committed.length === 0 && this.#waiting.length === 0)) return;
    this.#looking = true;
    try {
      const committed = this.#committed.splice(0);
      if (committed.length > 0) reach('acknowledge.committed-not-flushed');
      const { rows } = await this.#admin.query<{ inserted: string; flushed: string }>({
        name: 'flushed',
        text: 'SELECT pg_current_wal_insert_lsn() AS inserted, pg_current_wal_flush_lsn() AS flushed',
      });
      const [answer] = rows;
      if (answer === undefined) throw new Error('the upstream does not say how far its WAL is');
      if (committed.length > 0) this.#waiting.push({ lsn: parseLsn(answer.inserted), callbacks: committed });
      this.#callBack(parseLsn(answer.flushed));
    } finally {
      this.#looking = false;
    }
  }

  #callBack(flushed: Lsn): void {
    const behind = this.#waiting.findIndex(({ lsn }) => lsn > flushed);
    const done = this.#waiting.splice(0, behind === -1 ? this.#waiting.length : behind);
    if (done.length === 0) return;
    reach('acknowledge.flushed-not-sent');
    for (const { callbacks } of done) for (const back of callbacks) back();
    reachSoon('acknowledge.sent');
  }
}
