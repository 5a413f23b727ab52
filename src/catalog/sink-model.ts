/**
 * What a sink is, as the catalog keeps it.
 * Invariant: objects are named by id and columns by the name the relation shows them under; no secret is in it. JSON in, the same out.
 */

export type PlainFormat = { readonly kind: 'json' } | { readonly kind: 'text' } | { readonly kind: 'bytes' };

export interface AvroFormat {
  readonly kind: 'avro';
  /** Id of the connection to the schema registry. */
  readonly registryId: string;
  /** Full names of the record types; null: `row` for a key, `envelope` for a value. */
  readonly keyFullname: string | null;
  readonly valueFullname: string | null;
  /** Nullable fields have `"default": null`. */
  readonly nullDefaults: boolean;
  /** Documentation by place: the type itself ('') or a column's name. */
  readonly keyDocs: Readonly<Record<string, string>>;
  readonly valueDocs: Readonly<Record<string, string>>;
  /** Level to set when the subject is new; null: the registry's own. */
  readonly keyCompatibility: string | null;
  readonly valueCompatibility: string | null;
}

export type SinkFormat = PlainFormat | AvroFormat;

export interface KafkaSink {
  readonly type: 'kafka';
  readonly topic: string;
  readonly compression: 'none' | 'gzip' | 'snappy' | 'lz4' | 'zstd';
  /** Put before `millrace-<database oid>-<connection id>-<sink id>`. */
  readonly transactionalIdPrefix: string;
  /** When the topic has to be made; null: the broker's defaults. */
  readonly partitionCount: number | null;
  readonly replicationFactor: number | null;
  readonly topicConfig: Readonly<Record<string, string>>;
  /** Expression over the relation's columns; null: by the key's hash. */
  readonly partitionBy: string | null;
  /** Column whose map of texts goes into the headers. */
  readonly headers: string | null;
  readonly envelope: 'upsert' | 'debezium';
  readonly keyFormat: SinkFormat | null;
  readonly valueFormat: SinkFormat;
}

export interface PostgresSink {
  readonly type: 'postgres';
  readonly schema: string;
  readonly table: string;
}

export interface WebhookSink {
  readonly type: 'webhook';
  readonly url: string;
  /** Id of the secret that signs; null: unsigned. */
  readonly secretId: string | null;
}

export type SinkTarget = KafkaSink | PostgresSink | WebhookSink;

/** `millrace.sink.definition`. */
export interface SinkDefinition {
  readonly target: SinkTarget;
  /** Names of the key columns; null: none. */
  readonly key: readonly string[] | null;
  /** The key has been shown to be unique; false: NOT ENFORCED. */
  readonly keyProven: boolean;
}

/** A type of Postgres, as far as a format needs to know it. */
export interface SinkType {
  /** pg_type.typname. */
  readonly typeName: string;
  /** atttypmod, -1 when there is none. */
  readonly typmod: number;
  /** pg_type.typtype: base, composite, domain, enum, multirange, pseudo or range; base when missing. */
  readonly typeKind?: 'b' | 'c' | 'd' | 'e' | 'm' | 'p' | 'r';
  /** Of an array: the type of its elements. */
  readonly element?: SinkType;
  /** Of a domain: the type under it. */
  readonly base?: SinkType;
  /** Of a composite type: its attributes. */
  readonly fields?: readonly TypedColumn[];
  /** Of an array: what is between elements; a comma when missing (pg_type.typdelim). */
  readonly delimiter?: string;
}

/** A column, or an attribute of a composite type, as formats know it. */
export interface TypedColumn extends SinkType {
  readonly name: string;
  readonly nullable: boolean;
  /** COMMENT ON COLUMN; null: none. */
  readonly comment?: string | null;
}

/** A column of the relation as a version of a sink sees it. */
export interface SinkColumn extends TypedColumn {
  /** As format_type prints it, typmod included. */
  readonly type: string;
  readonly typeOid: number;
  /** Which column of which origin table it is, `<source id>.<table oid>:<attnum>`; null: a column of a view. */
  readonly identity: string | null;
}

/** What is emitted at a cutover besides the changes after it. */
export type Backfill = 'none' | 'snapshot' | 'diff';

/** Changes of a relation that sinks and subscriptions have still to take: ts, w, then its columns by place, v1, v2, .. */
export const outboxTable = (relationId: number | string): string => `millrace_data.o${relationId}`;
/** An outbox is the empty parent of two tables: epochs write to one while the other is read to its end, and emptied as a whole. */
export const outboxSegments = ['a', 'b'] as const;
export type OutboxSegment = (typeof outboxSegments)[number];
export const outboxSegmentTable = (relationId: number | string, segment: OutboxSegment): string => `${outboxTable(relationId)}${segment}`;
/** By the time of their epochs; of ranges of pages, as an entry for each row would cost more than the row. */
export const outboxIndex = (relationId: number | string, segment: OutboxSegment): string => `${outboxSegmentTable(relationId, segment)}_ts`;
/** What a version of a sink has to emit at its cutover: seq, place, w, v1, v2, .. */
export const backfillTable = (sinkId: number | string, version: number): string => `millrace_data.b${sinkId}_${version}`;
