/**
 * What Millrace can log in to the upstream with, in the name of a client.
 * Invariant: plain data that is kept in memory only, and never logged.
 */
import type { ScramKeys } from './scram-keys.ts';

export type ServerCredentials =
  | { readonly kind: 'password'; readonly password: string }
  /** Keys recovered from the client's own proof: they fit wherever the same verifier is stored. */
  | ({ readonly kind: 'scram' } & ScramKeys)
  /** `md5...` as stored. */
  | { readonly kind: 'md5'; readonly hash: string }
  /** The upstream has to trust the connection, or know its certificate. */
  | { readonly kind: 'none' };
