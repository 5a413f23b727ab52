/**
 * Errors a Postgres server reports. Invariant: every field of an ErrorResponse is kept, so that nothing a server says is lost on its way to the user.
 */

/** Fields of ErrorResponse and NoticeResponse (protocol, 53.8). Names follow libpq's PG_DIAG_*. */
export interface ServerMessageFields {
  readonly severity: string;
  readonly code: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
  /** 1-based character position in the statement, as text. */
  readonly position?: string;
  readonly internalPosition?: string;
  readonly internalQuery?: string;
  readonly where?: string;
  readonly schema?: string;
  readonly table?: string;
  readonly column?: string;
  readonly dataType?: string;
  readonly constraint?: string;
  readonly file?: string;
  readonly line?: string;
  readonly routine?: string;
}

/** An ErrorResponse. `code` is the SQLSTATE. */
export class PostgresError extends Error {
  readonly code: string;
  readonly fields: ServerMessageFields;
  /** For executeAll: index of the statement that failed. */
  readonly statementIndex: number | undefined;
  constructor(fields: ServerMessageFields, statementIndex?: number) {
    super(fields.message);
    this.name = 'PostgresError';
    this.code = fields.code;
    this.fields = fields;
    this.statementIndex = statementIndex;
  }
}

/** The connection ended before the reply. `code` is 08006. A reason the server gave just before is in `cause`. */
export class ConnectionLostError extends Error {
  readonly code = '08006';
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'ConnectionLostError';
  }
}

const names: Readonly<Record<string, keyof ServerMessageFields>> = {
  V: 'severity',
  C: 'code',
  M: 'message',
  D: 'detail',
  H: 'hint',
  P: 'position',
  p: 'internalPosition',
  q: 'internalQuery',
  W: 'where',
  s: 'schema',
  t: 'table',
  c: 'column',
  d: 'dataType',
  n: 'constraint',
  F: 'file',
  L: 'line',
  R: 'routine',
};

/** The body of an ErrorResponse or NoticeResponse, `[start, end)` in `buffer`, without tag and length. */
export function parseServerMessage(buffer: Buffer, start: number, end: number): ServerMessageFields {
  const fields: { -readonly [K in keyof ServerMessageFields]: string } = { severity: 'ERROR', code: 'XX000', message: 'unknown error' };
  let at = start;
  while (at < end && buffer[at] !== 0) {
    const name = names[String.fromCharCode(buffer[at] ?? 0)];
    let stop = at + 1;
    while (stop < end && buffer[stop] !== 0) stop++;
    // 'S' is the severity translated to the server's language; 'V' (since 9.6) is the one to rely on.
    if (name !== undefined) fields[name] = buffer.toString('utf8', at + 1, stop);
    at = stop + 1;
  }
  return fields;
}
