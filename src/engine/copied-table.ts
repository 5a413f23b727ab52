/**
 * The origin's side of a copy: the table as it was last looked at, and what is asked of it.
 * Invariant: the table is known by its OID and its columns by attnum; a name that does not fit any more makes it be looked at again.
 */
import { type Storage, storageTable } from '../catalog/model.ts';
import { borderSql, type KeyColumn, type KeyRange, type KeyValue, keysCondition, rangeCondition } from '../replication/key-ranges.ts';
import type { OriginTable } from '../replication/origin-tables.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import type { CopyOptions, OriginReader } from '../replication/snapshot.ts';
import { quoteIdentifier, quoteQualified } from '../sql/quote.ts';
import { insertColumns } from './apply-sql.ts';
import { isAsText } from './type-widening.ts';

export class CopiedTable {
  readonly #storage: Storage;
  readonly #describe: () => Promise<OriginTable | null>;
  #origin: OriginTable | null = null;

  constructor(storage: Storage, describe: () => Promise<OriginTable | null>) {
    this.#storage = storage;
    this.#describe = describe;
  }

  /** To be called before anything else. */
  async look(): Promise<void> {
    this.#origin = await this.#describe();
    if (this.#origin === null)
      throw new Error(`table ${this.#storage.originSchema}.${this.#storage.originName} is not at the origin any more`);
  }

  /** As an item of FROM, qualified and quoted. Rows of tables that inherit from it come as theirs; partitions are the table. */
  get name(): string {
    const { relkind, schema, name } = this.#seen;
    return `${relkind === 'r' ? 'ONLY ' : ''}${quoteQualified(schema, name)}`;
  }

  get #seen(): OriginTable {
    if (this.#origin === null) throw new Error('the table has not been looked at');
    return this.#origin;
  }

  get #key(): KeyColumn[] {
    const columns = new Map(this.#seen.columns.map((column) => [column.attnum, column]));
    return this.#storage.keyAttnums.map((attnum) => {
      const column = columns.get(attnum);
      if (column === undefined) throw new Error(`key column ${attnum} is not at the origin any more`);
      return { name: column.name, type: column.formattedType };
    });
  }

  /** Of the table and its partitions; rows 0: not known. */
  async size(reader: OriginReader): Promise<{ readonly rows: number; readonly bytes: number }> {
    const { oid } = this.#seen;
    const [size] = await reader.query(
      `SELECT coalesce(sum(pg_catalog.pg_table_size(c.oid)), 0), coalesce(sum(c.reltuples) FILTER (WHERE c.reltuples > 0), 0)::bigint
         FROM pg_catalog.pg_class c
        WHERE c.oid = ${oid} OR c.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(${oid}) t)`,
    );
    return { bytes: Number(size?.[0]), rows: Number(size?.[1]) };
  }

  /** The key that ends a range of so many rows; null when fewer are left. */
  async border(reader: OriginReader, after: KeyValue | null, rows: number): Promise<KeyValue | null> {
    const [row] = await reader.query(borderSql(this.name, this.#key, after, rows));
    return row === undefined ? null : row.map((value) => value ?? '');
  }

  /** Copies the rows of a range, or of some keys, into the storage: those that the publication publishes. */
  copySql(which: KeyRange | readonly KeyValue[]): Pick<CopyOptions, 'sourceSql' | 'targetSql' | 'withRowHash' | 'binary'> {
    const conditions = [this.#seen.rowFilter ?? '', 'after' in which ? this.#rangeCondition(which) : keysCondition(this.#key, which)]
      .filter((condition) => condition !== '')
      .map((condition) => `(${condition})`);
    const names = copiedNames(this.#storage, this.#seen);
    const list = this.#storage.columns.map((column) => {
      const known = names.get(column.attnum);
      // TEXT COLUMNS of any type arrive as the stream writes them: by the type's output function.
      return known === undefined
        ? 'NULL'
        : column.type === 'text' && column.originType !== 'text'
          ? `${quoteIdentifier(known)}::text`
          : quoteIdentifier(known);
    });
    const withRowHash = this.#storage.keyAttnums.length === 0;
    const binary = !withRowHash && this.#storage.columns.every((column) => !names.has(column.attnum) || isBinary(column));
    const format = binary ? ' (FORMAT binary)' : '';
    return {
      sourceSql: `COPY (SELECT ${list.join(', ')} FROM ${this.name}${conditions.length === 0 ? '' : ` WHERE ${conditions.join(' AND ')}`}) TO STDOUT${format}`,
      targetSql: `COPY ${storageTable(this.#storage.id)} (${insertColumns(this.#storage).join(', ')}) FROM STDIN${format}`,
      withRowHash,
      binary,
    };
  }

  #rangeCondition(range: KeyRange): string {
    return range.after === null && range.upTo === null ? '' : rangeCondition(this.#key, range);
  }

  /** Does it again, once undone, when it has failed because the table, or a column, has got another name since it was looked at. */
  async despiteRenaming<T>(work: () => Promise<T>, undo: () => Promise<unknown> = async () => undefined): Promise<T> {
    for (;;) {
      const before = this.#names();
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof PostgresError) || !['42703', '42P01', '3F000'].includes(error.code)) throw error;
        await this.look();
        if (this.#names() === before) throw error;
        await undo();
      }
    }
  }

  #names(): string {
    return JSON.stringify([this.name, ...copiedNames(this.#storage, this.#seen), this.#key, this.#seen.rowFilter]);
  }
}

/**
 * Types whose values every server from 15 to 18 sends and takes in the same bytes, and reads back as the same text; arrays of them too, as their OIDs are
 * the same everywhere. Not interval, which has been infinite only since 17: in text an older server refuses it. A third cheaper than text.
 */
const oneBinaryForm =
  /^(boolean|smallint|integer|bigint|real|double precision|numeric|text|character varying|character|bytea|uuid|date|jsonb?|time(stamp)?)(\(\d+(,-?\d+)?\))?( with(out)? time zone)?(\[\])*$/;

export const hasOneBinaryForm = (type: string): boolean => oneBinaryForm.test(type);

/** What does not have its origin's type is text, and is asked for as text. */
const isBinary = ({ type, originType }: Storage['columns'][number]): boolean =>
  type === 'text' || (type === originType && hasOneBinaryForm(type));

/**
 * Names of the columns that are copied, by attnum: the others are in the storage that this one extends, or of a type that the storage does not have, and no
 * version that can be read shows them.
 */
function copiedNames({ columns }: Storage, origin: OriginTable): ReadonlyMap<number, string> {
  const types = new Map(
    columns.filter(({ lost, elsewhere }) => lost !== true && elsewhere !== true).map((column) => [column.attnum, column]),
  );
  return new Map(
    origin.columns.flatMap(({ attnum, name, formattedType }) => {
      const column = types.get(attnum);
      return column !== undefined && (column.originType === formattedType || isAsText(column)) ? [[attnum, name]] : [];
    }),
  );
}
