/**
 * The Avro schemas of keys and values of sinks.
 * Invariant: the same schema as Materialize makes of the same columns, so that readers and registries see no difference. The same columns always give
 * the same schema.
 */

import type { TypedColumn } from '../../catalog/sink-model.ts';
import type { ValueKind } from './column.ts';
import { valueKind } from './column.ts';

export type AvroSchema = string | readonly AvroSchema[] | { readonly [key: string]: unknown };

export interface AvroOptions {
  /** Full name of the record; `row` for keys and `envelope` for values when missing. */
  readonly fullname?: string;
  /** Fields that may be null get `"default": null`. */
  readonly nullDefaults?: boolean;
  /** What the record is about. */
  readonly doc?: string;
  /** What columns are about, by name; else their comment. */
  readonly columnDocs?: Readonly<Record<string, string>>;
}

export interface AvroRecord {
  readonly type: 'record';
  readonly name: string;
  readonly doc?: string;
  readonly fields: readonly { readonly name: string; readonly type: AvroSchema; readonly default?: null; readonly doc?: string }[];
}

/** Digits of a numeric without scale: before and after the point together, and after it. */
export const NUMERIC_DIGITS = { precision: 81, scale: 39 } as const;
/** Digits of a numeric with a scale, where it does not ask for more. */
const SCALED_PRECISION = 39;

/** The record of a row: a key, or the value of ENVELOPE UPSERT. */
export function rowSchema(columns: readonly TypedColumn[], name: string, options: AvroOptions): AvroRecord {
  return record(options.fullname ?? name, columns, options, newNames());
}

/** The record of a change for ENVELOPE DEBEZIUM: the row before and after. */
export function changeSchema(columns: readonly TypedColumn[], options: AvroOptions): AvroRecord {
  const row = record('row', columns, options, newNames());
  const fallback = options.nullDefaults === true ? { default: null } : {};
  return {
    type: 'record',
    name: options.fullname ?? 'envelope',
    fields: [
      { name: 'before', type: ['null', { ...row }], ...fallback },
      { name: 'after', type: ['null', 'row'], ...fallback },
    ],
  };
}

/** Column names as Avro allows them: letters, digits and underscores, not a digit first, none twice. */
export function avroNames(names: readonly string[]): readonly string[] {
  const taken = new Set<string>();
  return names.map((name) => {
    let stem = name.replace(/[^A-Za-z0-9_]/gu, '_');
    if (stem === '' || /^[0-9]/.test(stem)) stem = `_${stem}`;
    let free = stem;
    for (let i = 1; taken.has(free); i++) free = `${stem}${/[0-9]$/.test(stem) ? '_' : ''}${i}`;
    taken.add(free);
    return free;
  });
}

interface Names {
  /** Names of types that have been written out: from the second time on the name stands for the type. */
  readonly defined: Set<string>;
}

function newNames(): Names {
  return { defined: new Set() };
}

function record(name: string, columns: readonly TypedColumn[], options: AvroOptions, names: Names): AvroRecord {
  const fieldNames = avroNames(columns.map((column) => column.name));
  const fields = columns.map((column, index) => {
    const doc = options.columnDocs?.[column.name] ?? column.comment ?? undefined;
    return field(fieldNames[index] ?? column.name, valueKind(column), column.nullable, names, options.nullDefaults === true, doc);
  });
  return { type: 'record', name, ...(options.doc === undefined ? {} : { doc: options.doc }), fields };
}

function field(
  name: string,
  value: ValueKind,
  nullable: boolean,
  names: Names,
  nullDefaults: boolean,
  doc: string | undefined,
): AvroRecord['fields'][number] {
  const type = typeOf(value, names, nullDefaults);
  return {
    name,
    type: nullable ? ['null', type] : type,
    ...(nullable && nullDefaults ? { default: null } : {}),
    ...(doc === undefined ? {} : { doc }),
  };
}

/** Digits before and after the point together, and after it, that the decimal of a numeric has room for. */
export function decimalDigits(value: { readonly precision?: number; readonly scale?: number }): { precision: number; scale: number } {
  if (value.scale === undefined) return NUMERIC_DIGITS;
  return { precision: Math.max(SCALED_PRECISION, value.precision ?? 0, value.scale), scale: value.scale };
}

function typeOf(value: ValueKind, names: Names, nullDefaults: boolean): AvroSchema {
  switch (value.kind) {
    case 'boolean':
      return 'boolean';
    case 'integer':
      return value.bits === 64 ? 'long' : 'int';
    case 'float':
      return value.bits === 32 ? 'float' : 'double';
    case 'numeric':
      return { type: 'bytes', logicalType: 'decimal', ...decimalDigits(value) };
    case 'text':
      return 'string';
    case 'bytes':
      return 'bytes';
    case 'date':
      return { type: 'int', logicalType: 'date' };
    case 'time':
      return { type: 'long', logicalType: 'time-micros' };
    case 'timestamp':
      return { type: 'long', logicalType: value.digits <= 3 ? 'timestamp-millis' : 'timestamp-micros' };
    case 'interval':
      return named(names, 'com.materialize.sink.interval', (name) => ({ type: 'fixed', size: 16, name }));
    case 'oid':
      return named(names, 'com.materialize.sink.uint4', (name) => ({ type: 'fixed', size: 4, name }));
    case 'uuid':
      return { type: 'string', logicalType: 'uuid' };
    case 'json':
      return { type: 'string', 'connect.name': 'io.debezium.data.Json' };
    case 'array':
      return { type: 'array', items: ['null', typeOf(value.element, names, nullDefaults)] };
    case 'record': {
      const [own = value.name] = avroNames([value.name]);
      return named(names, `com.materialize.sink.${own}`, (name) => {
        const fieldNames = avroNames(value.fields.map((one) => one.name));
        const fields = value.fields.map((one, index) => {
          const fieldName = fieldNames[index] ?? one.name;
          return field(fieldName, one.value, one.nullable, names, nullDefaults, undefined);
        });
        return { type: 'record', name, fields };
      });
    }
    case 'unknown':
      throw new Error('a column of an unknown type has no schema');
  }
}

function named(names: Names, name: string, define: (name: string) => AvroSchema): AvroSchema {
  if (names.defined.has(name)) return name;
  names.defined.add(name);
  return define(name);
}
