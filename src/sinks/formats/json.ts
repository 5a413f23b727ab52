/**
 * FORMAT JSON: a row as one JSON object.
 * Invariant: the object can be read by any parser and loses nothing: numbers that doubles cannot hold exactly only appear where the type is an integer.
 *
 * As in Materialize: numeric is a string; timestamps are strings of milliseconds since 1970 with three decimals; bytea is an array of numbers;
 * date, time, interval and uuid are as Postgres writes them; json and jsonb are themselves; arrays are arrays, composite values objects.
 * Where JSON has no word, a string has it: NaN and infinities of floats, and infinite timestamps.
 */

import type { TypedColumn } from '../../catalog/sink-model.ts';
import { epochMicros } from '../../sql/time-text.ts';
import { type SinkRow, type UnsupportedColumn, type ValueKind, ValueNotEncodable, valueKind } from './column.ts';
import { type ArrayElement, arrayElements, bytea, recordValues } from './literals.ts';

/** Writes a value, given as Postgres writes it, as JSON. */
export type JsonWriter = (text: string) => string;

/** What makes the JSON of the columns with these indexes of a row; or the column that cannot be written. */
export function jsonObject(
  columns: readonly TypedColumn[],
  picked: readonly number[],
): { readonly toJson: (row: SinkRow) => string } | { readonly unsupported: UnsupportedColumn } {
  const members: { readonly index: number; readonly name: string; readonly write: JsonWriter }[] = [];
  for (const index of picked) {
    const column = columns[index];
    if (column === undefined) throw new RangeError(`no column ${index}`);
    const kind = valueKind(column);
    if (kind.kind === 'unknown') {
      const reason = 'it has no parts that are known';
      return { unsupported: { column: column.name, type: column.typeName, format: 'JSON', reason } };
    }
    members.push({ index, name: `${JSON.stringify(column.name)}:`, write: writerOf(kind, column.name) });
  }
  return {
    toJson(row) {
      let json = '{';
      for (const { index, name, write } of members) {
        const text = row[index] ?? null;
        if (json.length > 1) json += ',';
        json += name + (text === null ? 'null' : write(text));
      }
      return `${json}}`;
    },
  };
}

/** How values of a kind are written. `column`: named when a value cannot be. */
export function writerOf(kind: Exclude<ValueKind, { kind: 'unknown' }>, column: string): JsonWriter {
  switch (kind.kind) {
    case 'boolean':
      return (text) => (text === 't' || text === 'true' ? 'true' : 'false');
    case 'integer':
    case 'oid':
      return (text) => text;
    case 'float':
      // Postgres writes what JSON reads, except these.
      return (text) => (text === 'NaN' || text.endsWith('Infinity') ? `"${text}"` : text);
    case 'numeric':
    case 'text':
    case 'date':
    case 'time':
    case 'interval':
    case 'uuid':
      return (text) => JSON.stringify(text);
    case 'json':
      return (text) => text;
    case 'bytes':
      return (text) => `[${bytea(text).join(',')}]`;
    case 'timestamp':
      return (text) => (text.endsWith('infinity') ? `"${text}"` : `"${milliseconds(text, column)}"`);
    case 'array': {
      const element = writerOf(kind.element as Exclude<ValueKind, { kind: 'unknown' }>, column);
      const write = (one: ArrayElement): string => {
        if (one === null) return 'null';
        return typeof one === 'string' ? element(one) : `[${one.map(write).join(',')}]`;
      };
      return (text) => write(arrayElements(text, kind.delimiter) ?? notReadable(column, text));
    }
    case 'record': {
      const fields = kind.fields.map(({ name, value }) => ({
        name: `${JSON.stringify(name)}:`,
        write: writerOf(value as Exclude<ValueKind, { kind: 'unknown' }>, column),
      }));
      return (text) => {
        const values = recordValues(text) ?? notReadable(column, text);
        const members = fields.map(({ name, write }, index) => {
          const value = values[index] ?? null;
          return name + (value === null ? 'null' : write(value));
        });
        return `{${members.join(',')}}`;
      };
    }
  }
}

function milliseconds(text: string, column: string): string {
  const micros = epochMicros(text) ?? notReadable(column, text);
  const digits = String(micros < 0n ? -micros : micros).padStart(4, '0');
  return `${micros < 0n ? '-' : ''}${digits.slice(0, -3)}.${digits.slice(-3)}`;
}

function notReadable(column: string, text: string): never {
  throw new ValueNotEncodable(column, text, 'it is not as Postgres writes it with its own settings');
}
