/** The letters that name messages, as bytes. Client and server use some of them for different things. */

/** Sent by the client. */
export const Request = {
  query: 0x51,
  parse: 0x50,
  bind: 0x42,
  describe: 0x44,
  execute: 0x45,
  close: 0x43,
  sync: 0x53,
  flush: 0x48,
  functionCall: 0x46,
  copyData: 0x64,
  copyDone: 0x63,
  copyFail: 0x66,
  password: 0x70,
  terminate: 0x58,
} as const;

/** Sent by the server. */
export const Reply = {
  authentication: 0x52,
  parameterStatus: 0x53,
  backendKeyData: 0x4b,
  readyForQuery: 0x5a,
  negotiateProtocolVersion: 0x76,
  error: 0x45,
  notice: 0x4e,
  notification: 0x41,
  parseComplete: 0x31,
  bindComplete: 0x32,
  closeComplete: 0x33,
  parameterDescription: 0x74,
  rowDescription: 0x54,
  noData: 0x6e,
  dataRow: 0x44,
  commandComplete: 0x43,
  emptyQuery: 0x49,
  portalSuspended: 0x73,
  copyIn: 0x47,
  copyOut: 0x48,
  copyBoth: 0x57,
  copyData: 0x64,
  copyDone: 0x63,
} as const;

/** Transaction status in ReadyForQuery. */
export const Status = { idle: 0x49, inTransaction: 0x54, failed: 0x45 } as const;
