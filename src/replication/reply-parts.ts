/** Bodies of backend messages. Invariant: nothing here keeps a reference to the buffer it reads. */

/** One column of a RowDescription. OIDs are unsigned; tableOid and attnum are 0 for computed columns. */
export interface Column {
  readonly name: string;
  readonly tableOid: number;
  readonly attnum: number;
  readonly typeOid: number;
  readonly typmod: number;
}

/** The string that begins at `at`, without its final zero byte. */
export function readCString(buffer: Buffer, at: number): string {
  const stop = buffer.indexOf(0, at);
  return buffer.toString('utf8', at, stop < 0 ? buffer.length : stop);
}

/** Body of a RowDescription that begins at `start`. */
export function parseRowDescription(buffer: Buffer, start: number): Column[] {
  const columns: Column[] = [];
  let at = start + 2;
  for (let i = buffer.readUInt16BE(start); i > 0; i--) {
    const stop = buffer.indexOf(0, at);
    const name = buffer.toString('utf8', at, stop);
    at = stop + 1;
    columns.push({
      name,
      tableOid: buffer.readUInt32BE(at),
      attnum: buffer.readInt16BE(at + 4),
      typeOid: buffer.readUInt32BE(at + 6),
      typmod: buffer.readInt32BE(at + 12),
    });
    at += 18;
  }
  return columns;
}

/** Body of a DataRow in text format that begins at `start`. */
export function parseDataRow(buffer: Buffer, start: number): (string | null)[] {
  const count = buffer.readUInt16BE(start);
  const row: (string | null)[] = new Array(count);
  let at = start + 2;
  for (let i = 0; i < count; i++) {
    const length = buffer.readInt32BE(at);
    at += 4;
    if (length < 0) row[i] = null;
    else {
      row[i] = buffer.toString('utf8', at, at + length);
      at += length;
    }
  }
  return row;
}
