/** Structured logging: one line per event, no secrets, no SQL literals above debug. */
import { type Logger, pino } from 'pino';

export type { Logger };

/**
 * The process-wide logger for one part of Millrace.
 * Level from MILLRACE_LOG_LEVEL (default info); output is JSON lines on stderr, written synchronously so that a crash loses nothing.
 */
export function createLogger(part: string): Logger {
  return pino(
    { name: 'millrace', level: process.env['MILLRACE_LOG_LEVEL'] ?? 'info', base: { part, pid: process.pid } },
    pino.destination({ dest: 2, sync: true }),
  );
}
