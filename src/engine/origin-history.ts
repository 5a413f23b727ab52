/**
 * The shapes that an origin's tables had, in the order of its WAL.
 * Invariant: while the stream stands at a position, `shape` is what the table had there, as far as that has been told: rows are read by it,
 * not by what the origin's catalog says by then. A version is told once.
 */

import type { Lsn } from '../replication/lsn.ts';
import { formatLsn } from '../replication/lsn.ts';
import type { TableShape } from '../replication/origin-tables.ts';
import type { RelationMessage } from '../replication/pgoutput.ts';
import type { Execution } from '../replication/session-contract.ts';
import { tableChanges } from '../replication/table-changes.ts';

/** Where a version begins: before the rows of that transaction that come after it. */
export interface HistoryPosition {
  /** Of the commit record. */
  readonly commitLsn: Lsn;
  /** Order within the transaction. */
  readonly ordinal: number;
}

/** How it became known: when the source began, by a message of the origin's event trigger, or from its catalog. */
export interface Learned {
  readonly from: 'start' | 'message' | 'catalog';
  readonly tag: string | null;
  readonly by: string | null;
  /** ISO 8601; null: now. */
  readonly at: string | null;
}

export interface OriginVersion extends HistoryPosition {
  readonly sourceId: number;
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** Null: the table was dropped. */
  readonly shape: TableShape | null;
  /** Subcommands of ALTER TABLE; empty for the first version. */
  readonly changes: readonly string[];
  readonly learned: Learned;
}

export class OriginHistory {
  readonly #sourceId: number;
  /** The origin tells of its DDL. */
  readonly tells: boolean;
  readonly #shapes: Map<number, TableShape>;

  constructor(sourceId: number, tells: boolean, shapes: Iterable<TableShape>) {
    this.#sourceId = sourceId;
    this.tells = tells;
    this.#shapes = new Map([...shapes].map((shape) => [shape.oid, shape]));
  }

  /** The table as of the stream's position; undefined: nothing is known. */
  shape(oid: number): TableShape | undefined {
    return this.#shapes.get(oid);
  }

  /** Partitioned tables without a partition that is gone. */
  parentsOf(oid: number): TableShape[] {
    return [...this.#shapes.values()].flatMap((shape) =>
      shape.parts?.some((part) => part.oid === oid) === true ? [{ ...shape, parts: shape.parts.filter((part) => part.oid !== oid) }] : [],
    );
  }

  /**
   * The table's shape when the columns of the message are columns of it, by name and type and in their order, which is that of attnum:
   * else something was not told.
   */
  shapeFor(message: RelationMessage): TableShape | null {
    const shape = this.#shapes.get(message.oid);
    if (shape === undefined || shape.schema !== message.schema || shape.name !== message.name) return null;
    const columns = new Map(shape.columns.map((column) => [column.name, column]));
    let last = 0;
    const fits = message.columns.every((column) => {
      const known = columns.get(column.name);
      if (known === undefined || known.typeOid !== column.typeOid || known.typmod !== column.typmod || known.attnum < last) return false;
      last = known.attnum;
      return true;
    });
    return fits ? shape : null;
  }

  /** The table has this shape from here on. Null when that is nothing new. */
  learn(shape: TableShape, position: HistoryPosition, learned: Learned): OriginVersion | null {
    const before = this.#shapes.get(shape.oid);
    const changes = before === undefined ? [] : tableChanges(before, shape);
    this.#shapes.set(shape.oid, shape);
    if (before !== undefined && changes.length === 0) return null;
    const { oid, schema, name } = shape;
    return { sourceId: this.#sourceId, ...position, oid, schema, name, shape, changes, learned };
  }

  /** The table is gone from here on. */
  drop(
    table: { readonly oid: number; readonly schema: string; readonly name: string },
    position: HistoryPosition,
    learned: Learned,
  ): OriginVersion | null {
    if (!this.#shapes.delete(table.oid)) return null;
    return { sourceId: this.#sourceId, ...position, ...table, shape: null, changes: ['DROP TABLE'], learned };
  }
}

/** Records versions, within the epoch that has the rows after them. A version that comes again after a crash is there already. */
export function recordVersions(versions: readonly OriginVersion[]): Execution[] {
  return versions.map((version) => ({
    name: 'origin_version',
    sql: `INSERT INTO millrace.origin_table_version
       (source_id, table_oid, commit_lsn, ordinal, schema_name, table_name, shape, changes, learned, command, session_role, changed_at)
     VALUES ($1::bigint, $2::oid, $3::pg_lsn, $4::integer, $5, $6, $7::jsonb, $8::text[], $9, $10, $11, coalesce($12::timestamptz, clock_timestamp()))
     ON CONFLICT DO NOTHING`,
    params: [
      String(version.sourceId),
      String(version.oid),
      formatLsn(version.commitLsn),
      String(version.ordinal),
      version.schema,
      version.name,
      version.shape === null ? null : JSON.stringify(version.shape),
      textArray(version.changes),
      version.learned.from,
      version.learned.tag,
      version.learned.by,
      version.learned.at,
    ],
  }));
}

const textArray = (items: readonly string[]): string =>
  `{${items.map((item) => `"${item.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`).join(',')}}`;
