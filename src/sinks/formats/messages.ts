/**
 * Messages of a sink: what a change of a row becomes, in its formats and its envelope.
 * Invariant: a reader that keeps the newest value of each key (UPSERT), or applies each change (DEBEZIUM), has the rows of the relation.
 */

import type { TypedColumn } from '../../catalog/sink-model.ts';
import type { RowLine } from '../row-lines.ts';
import { avroChanges, avroRows } from './avro.ts';
import type { AvroOptions, AvroRecord } from './avro-schema.ts';
import type { SinkRow, UnsupportedColumn } from './column.ts';
import { jsonObject } from './json.ts';
import { jsonMessages } from './json-lines.ts';
import { bytesValue, textValue } from './plain.ts';

export type SinkFormat =
  | { readonly kind: 'json' }
  | { readonly kind: 'text' }
  | { readonly kind: 'bytes' }
  | { readonly kind: 'avro'; readonly options?: AvroOptions };

export type SinkEnvelope = 'upsert' | 'debezium';

export interface MessageSpec {
  readonly columns: readonly TypedColumn[];
  /** Indexes of the key columns, in the order they were named; null without KEY. */
  readonly key: readonly number[] | null;
  readonly keyFormat: SinkFormat;
  readonly valueFormat: SinkFormat;
  readonly envelope: SinkEnvelope;
}

/** A change of one row: inserted, deleted, or updated. */
export interface RowChange {
  readonly before: SinkRow | null;
  readonly after: SinkRow | null;
}

export interface SinkMessage {
  readonly key: Buffer | null;
  /** Null: a tombstone. */
  readonly value: Buffer | null;
  /** What the partition is chosen by: the key without the number of its schema, so that a new version of the schema does not move it. */
  readonly partitionBy: Buffer | null;
}

/** The numbers that a schema registry gave the schemas. */
export interface SchemaIds {
  readonly key?: number;
  readonly value?: number;
}

export interface MessageMaker {
  readonly keySchema?: AvroRecord;
  readonly valueSchema?: AvroRecord;
  /** The messages of a change, in order. Throws ValueNotEncodable for a value that the format has no place for. */
  messages(change: RowChange, ids: SchemaIds): readonly SinkMessage[];
  /** The same of lines as they were read, quicker. */
  messagesOfLines(change: LineChange, ids: SchemaIds): readonly SinkMessage[];
}

/** A change of one row, both lines of one layout. */
export interface LineChange {
  readonly before: RowLine | null;
  readonly after: RowLine | null;
}

/** What the sink cannot be made with. */
export type MessageProblem =
  | { readonly problem: 'unsupported_column'; readonly unsupported: UnsupportedColumn }
  | { readonly problem: 'key_required' }
  | { readonly problem: 'one_column_only'; readonly format: 'TEXT' | 'BYTES' }
  | { readonly problem: 'no_envelope_in_format'; readonly format: 'TEXT' | 'BYTES' };

/** Puts formats and envelope together, or says what does not fit. */
export function messageMaker(spec: MessageSpec): MessageMaker | MessageProblem {
  const { columns, key, envelope } = spec;
  if (envelope === 'upsert' && key === null) return { problem: 'key_required' };
  const keys = key === null ? undefined : rowEncoder(columns, key, spec.keyFormat, 'row');
  if (keys !== undefined && 'problem' in keys) return keys;
  const values = envelope === 'upsert' ? upsertValues(spec) : changeEncoder(columns, spec.valueFormat);
  if ('problem' in values) return values;

  const message = (keyRow: SinkRow, before: SinkRow | null, after: SinkRow | null, ids: SchemaIds): SinkMessage => {
    const partitionBy = keys === undefined ? null : keys.encode(keyRow);
    const value = values.encode(before, after);
    return {
      key: partitionBy === null ? null : framed(partitionBy, keys?.schema, ids.key),
      value: value === null ? null : framed(value, values.schema, ids.value),
      partitionBy,
    };
  };
  const messages = ({ before, after }: RowChange, ids: SchemaIds): readonly SinkMessage[] => {
    if (before !== null && after !== null) {
      const together = key?.every((index) => before[index] === after[index]) ?? false;
      if (together) return [message(after, before, after, ids)];
    }
    const made: SinkMessage[] = [];
    if (before !== null) made.push(message(before, before, null, ids));
    if (after !== null) made.push(message(after, null, after, ids));
    return made;
  };
  const isJson = spec.valueFormat.kind === 'json' && (key === null || spec.keyFormat.kind === 'json');
  return {
    ...(keys?.schema === undefined ? {} : { keySchema: keys.schema }),
    ...(values.schema === undefined ? {} : { valueSchema: values.schema }),
    messages,
    messagesOfLines: isJson
      ? jsonMessages(columns, key, envelope)
      : ({ before, after }, ids) => messages({ before: before?.values() ?? null, after: after?.values() ?? null }, ids),
  };
}

interface RowEncoder {
  readonly schema?: AvroRecord;
  encode(row: SinkRow): Buffer;
}

interface ValueEncoder {
  readonly schema?: AvroRecord;
  encode(before: SinkRow | null, after: SinkRow | null): Buffer | null;
}

function upsertValues(spec: MessageSpec): ValueEncoder | MessageProblem {
  const all = spec.columns.map((_, index) => index);
  const rows = rowEncoder(spec.columns, all, spec.valueFormat, 'envelope');
  if ('problem' in rows) return rows;
  return {
    ...(rows.schema === undefined ? {} : { schema: rows.schema }),
    encode: (_, after) => (after === null ? null : rows.encode(after)),
  };
}

function rowEncoder(
  columns: readonly TypedColumn[],
  picked: readonly number[],
  format: SinkFormat,
  name: 'row' | 'envelope',
): RowEncoder | MessageProblem {
  switch (format.kind) {
    case 'json': {
      const json = jsonObject(columns, picked);
      return 'unsupported' in json ? unsupported(json.unsupported) : { encode: (row) => Buffer.from(json.toJson(row)) };
    }
    case 'avro': {
      const avro = avroRows(columns, picked, name, format.options);
      return 'unsupported' in avro ? unsupported(avro.unsupported) : avro;
    }
    case 'text':
    case 'bytes': {
      const [index, ...more] = picked;
      const column = index === undefined ? undefined : columns[index];
      if (index === undefined || column === undefined || more.length > 0) {
        return { problem: 'one_column_only', format: format.kind === 'text' ? 'TEXT' : 'BYTES' };
      }
      if (format.kind === 'text') return textValue(index);
      const bytes = bytesValue(column, index);
      return 'unsupported' in bytes ? unsupported(bytes.unsupported) : bytes;
    }
  }
}

function changeEncoder(columns: readonly TypedColumn[], format: SinkFormat): ValueEncoder | MessageProblem {
  switch (format.kind) {
    case 'json': {
      const json = jsonObject(
        columns,
        columns.map((_, index) => index),
      );
      if ('unsupported' in json) return unsupported(json.unsupported);
      const side = (row: SinkRow | null): string => (row === null ? 'null' : json.toJson(row));
      return { encode: (before, after) => Buffer.from(`{"before":${side(before)},"after":${side(after)}}`) };
    }
    case 'avro': {
      const avro = avroChanges(columns, format.options);
      return 'unsupported' in avro ? unsupported(avro.unsupported) : avro;
    }
    case 'text':
    case 'bytes':
      return { problem: 'no_envelope_in_format', format: format.kind === 'text' ? 'TEXT' : 'BYTES' };
  }
}

function unsupported(column: UnsupportedColumn): MessageProblem {
  return { problem: 'unsupported_column', unsupported: column };
}

/** Confluent's wire format: a zero, the number of the schema, then Avro. Other formats go out as they are. */
function framed(bytes: Buffer, schema: AvroRecord | undefined, id: number | undefined): Buffer {
  if (schema === undefined) return bytes;
  if (id === undefined) throw new Error('an Avro schema has no number yet');
  const prefixed = Buffer.allocUnsafe(bytes.length + 5);
  prefixed.writeUInt8(0, 0);
  prefixed.writeInt32BE(id, 1);
  prefixed.set(bytes, 5);
  return prefixed;
}
