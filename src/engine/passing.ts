/** Errors that say nothing about the statement. */
import type { PostgresError } from '../replication/postgres-error.ts';

/** A lock that could not be had, a deadlock, a server that goes down: the same again may succeed. */
export const isPassing = (error: PostgresError): boolean =>
  /^(08|57|53)/.test(error.code) || ['55P03', '40P01', '40001'].includes(error.code);
