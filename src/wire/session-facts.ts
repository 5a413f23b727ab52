/** A session as others see it. Invariant: read at the moment it is asked for; nothing here is kept. */
import type { Socket } from 'node:net';
import type { Ledger } from './ledger.ts';

/** What the admin console shows of a session. */
export interface SessionFacts {
  readonly client: Socket;
  /** Null while the client has none. */
  readonly upstream: Socket | null;
  readonly ledger: Ledger;
  readonly authenticated: boolean;
  /** In a transaction, or with a request under way. */
  readonly busy: boolean;
  readonly backendPid: number;
  /** Process id and secret of the backend, as a cancel request has them; empty when they are not known. */
  readonly backendKey: Buffer;
  /** How many transactions have ended, those of statements that were taken over included. */
  readonly transactions: number;
  readonly applicationName: string;
}
