/**
 * The columns of a relation that is sunk, and what kind of value each holds.
 * Invariant: every type is one of the kinds below, so that a format says for each kind what it writes, and there is no other list of types.
 */
import type { SinkType } from '../../catalog/sink-model.ts';

/** A row as Postgres writes it as text (DateStyle ISO, IntervalStyle postgres, bytea_output hex), column by column. */
export type SinkRow = readonly (string | null)[];

export type ValueKind =
  | { readonly kind: 'boolean' }
  | { readonly kind: 'integer'; readonly bits: 16 | 32 | 64 }
  | { readonly kind: 'float'; readonly bits: 32 | 64 }
  /** Without scale: as many digits as the value has. */
  | { readonly kind: 'numeric'; readonly precision?: number; readonly scale?: number }
  | { readonly kind: 'text' }
  | { readonly kind: 'bytes' }
  | { readonly kind: 'date' }
  | { readonly kind: 'time' }
  | { readonly kind: 'timestamp'; readonly digits: number }
  | { readonly kind: 'interval' }
  | { readonly kind: 'uuid' }
  | { readonly kind: 'json' }
  | { readonly kind: 'oid' }
  | { readonly kind: 'array'; readonly element: ValueKind; readonly delimiter: string }
  | { readonly kind: 'record'; readonly name: string; readonly fields: readonly RecordField[] }
  | { readonly kind: 'unknown' };

export interface RecordField {
  readonly name: string;
  readonly nullable: boolean;
  readonly value: ValueKind;
}

/** A column that a format cannot write, found when the sink is made. */
export interface UnsupportedColumn {
  readonly column: string;
  readonly type: string;
  readonly format: string;
  readonly reason: string;
}

/** A value that a format cannot write although it can write others of the type: an error of that row. */
export class ValueNotEncodable extends Error {
  override readonly name = 'ValueNotEncodable';
  readonly column: string;
  readonly value: string;

  constructor(column: string, value: string, reason: string) {
    super(`value ${shortened(value)} of column "${column}" cannot be written: ${reason}`);
    this.column = column;
    this.value = value;
  }
}

const KINDS: Readonly<Record<string, ValueKind>> = {
  bool: { kind: 'boolean' },
  int2: { kind: 'integer', bits: 16 },
  int4: { kind: 'integer', bits: 32 },
  int8: { kind: 'integer', bits: 64 },
  float4: { kind: 'float', bits: 32 },
  float8: { kind: 'float', bits: 64 },
  bytea: { kind: 'bytes' },
  date: { kind: 'date' },
  time: { kind: 'time' },
  interval: { kind: 'interval' },
  uuid: { kind: 'uuid' },
  json: { kind: 'json' },
  jsonb: { kind: 'json' },
  oid: { kind: 'oid' },
};

/** What kind of value a type holds. Types of extensions, enums, ranges and the like are text, as Postgres shows them. */
export function valueKind(type: SinkType): ValueKind {
  if (type.element !== undefined) {
    const element = valueKind(type.element);
    return element.kind === 'unknown' ? element : { kind: 'array', element, delimiter: type.delimiter ?? ',' };
  }
  switch (type.typeKind ?? 'b') {
    case 'd': {
      if (type.base === undefined) return { kind: 'unknown' };
      // A domain over numeric has the precision in its own typmod.
      return valueKind(type.typmod >= 0 && type.base.typmod < 0 ? { ...type.base, typmod: type.typmod } : type.base);
    }
    case 'c':
      return recordKind(type);
    case 'p':
      return { kind: 'unknown' };
    case 'e':
    case 'm':
    case 'r':
      return { kind: 'text' };
    case 'b':
      return baseKind(type);
  }
}

function baseKind({ typeName, typmod }: SinkType): ValueKind {
  switch (typeName) {
    case 'numeric': {
      if (typmod < 4) return { kind: 'numeric' };
      // The scale is a signed number of 11 bits.
      const scale = (((typmod - 4) & 0x7ff) ^ 0x400) - 0x400;
      return { kind: 'numeric', precision: ((typmod - 4) >> 16) & 0xffff, scale: Math.max(scale, 0) };
    }
    case 'timestamp':
    case 'timestamptz':
      return { kind: 'timestamp', digits: typmod < 0 ? 6 : typmod };
    default:
      return KINDS[typeName] ?? { kind: 'text' };
  }
}

function recordKind({ typeName, fields }: SinkType): ValueKind {
  const described = (fields ?? []).map((field) => ({ name: field.name, nullable: field.nullable, value: valueKind(field) }));
  if (fields === undefined || described.some(({ value }) => value.kind === 'unknown')) return { kind: 'unknown' };
  return { kind: 'record', name: typeName, fields: described };
}

function shortened(value: string): string {
  return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}...` : value);
}
