/** Lines of COPY for tests, as the server would write them. */
import { type Row, RowLine } from '../../../src/sinks/row-lines.ts';

const escapes: Readonly<Record<string, string>> = { '\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't', '\v': 'v', '\\': '\\' };

/** PostgreSQL's CopyAttributeOutText. */
const field = (value: string | null): string => (value === null ? '\\N' : value.replace(/[\b\f\n\r\t\v\\]/g, (one) => `\\${escapes[one]}`));

/** A line with the columns as they are, or with those of these indexes first. */
export function rowLine(values: Row, first: readonly number[] = []): RowLine {
  const order = [...first, ...values.keys()].filter((index, at, all) => all.indexOf(index) === at);
  const line = Buffer.from(`before\t${order.map((index) => field(values[index] ?? null)).join('\t')}\n`);
  return new RowLine({ fieldOf: values.map((_, index) => order.indexOf(index)) }, line, 7, line.length - 1);
}
