/** Replies of a server in a form that can be compared. */
import { errorFields } from '../../../src/wire/decode.ts';

/** A COPY that is in the way of a candidate ends the connection by the first message it sees, which is then one of ours. */
const unexpected = /type 0x\w\w during COPY/;

/** Replies as lines. `loosely`: without what Millrace cannot know of a statement of its own: its source line, its context. */
export function replies(bytes: Buffer, loosely: boolean): string[] {
  const lines: string[] = [];
  for (let at = 0; at + 5 <= bytes.length; ) {
    const next = at + 1 + bytes.readInt32BE(at + 1);
    const tag = String.fromCharCode(bytes.readUInt8(at));
    const message = bytes.subarray(at, next);
    let body = message
      .toString('latin1', 5)
      .replace(/pg_temp_\d+/, 'pg_temp')
      .replace(unexpected, 'type during COPY');
    if (loosely && (tag === 'E' || tag === 'N')) {
      const { S, V, C, M, D, H, P } = errorFields(message, 'latin1');
      body = JSON.stringify({ S, V, C, M: M?.replace(unexpected, 'type during COPY'), D, H, P });
    } else if (loosely && tag === 'C') body = body.replace(/^(DO|CREATE SECRET)\0/, 'DONE').replace(/^(SHOW|EXPLAIN|SELECT \d+)\0/, 'ROWS');
    else if (tag === 'T') body = columns(message, loosely);
    lines.push(`${tag} ${body.length > 300 ? `${body.slice(0, 300)}... ${body.length}` : body}`);
    at = next;
  }
  // The last CommandComplete of a text waits for the commit, at which the server also reports parameters.
  const isReport = (line: string): boolean => line.startsWith('S ');
  return loosely ? [...lines.filter((line) => !isReport(line)), ...lines.filter(isReport)] : lines;
}

/** A RowDescription without the OIDs of tables, which are not the same on both sides; `loosely` also without columns and modifiers. */
function columns(message: Buffer, loosely: boolean): string {
  const shown: string[] = [];
  for (let at = 7; at < message.length; ) {
    const end = message.indexOf(0, at);
    const origin = loosely ? '' : message.toString('hex', end + 5, end + 7);
    const modifier = loosely ? '' : message.readInt32BE(end + 13);
    shown.push(
      [message.toString('latin1', at, end), origin, message.readInt32BE(end + 7), modifier, message.readInt16BE(end + 17)].join(' '),
    );
    at = end + 19;
  }
  return shown.join(', ');
}
