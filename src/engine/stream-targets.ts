/**
 * Where the rows of each relation of a stream go.
 * Invariant: look-ups end in the order in which they were asked for, so that a slow one, begun before a storage went live, never puts its old answer
 * over a newer one; `settled` is told when the last has ended, and no row may be taken in before.
 */
import type { Storage } from '../catalog/model.ts';
import type { TableShape } from '../replication/origin-tables.ts';
import type { RelationMessage } from '../replication/pgoutput.ts';
import type { ShapeStep, Target } from './change-batch.ts';

export interface ResolvedTarget {
  readonly storage: Storage;
  /** For each of its columns the place in the message; -1: it has none. */
  readonly columns: readonly number[];
  readonly spool: boolean;
  /** Rows of a storage without key are hashed upstream. */
  readonly rehash: boolean;
}

/** Where rows of a relation go. */
export interface ResolvedRelation {
  readonly targets: readonly ResolvedTarget[];
  /** The table as the origin's catalog has it, when that had to be asked. */
  readonly asked: TableShape | null;
  /** What has to be done to storages before the rows that follow. */
  readonly steps: readonly ShapeStep[];
}

/** Where a relation is resolved. */
export interface StreamPlace {
  /** The table as of the stream's position, when that is known to be so; else the caller asks the origin. */
  readonly shape: TableShape | null;
  /** The last that is known of the table. */
  readonly last: TableShape | undefined;
  /** What the origin has now may be taken for what it has here. */
  readonly mayLearn: boolean;
  /**
   * The message has just come: a column that it lacks is not published. The origin sends no other before the next row, so that one which is looked up again
   * may be of what the publication was before.
   */
  readonly isCurrent: boolean;
}

/** How the origin's relation maps to storages. */
export type ResolveRelation = (message: RelationMessage, place: StreamPlace) => Promise<ResolvedRelation>;

export interface TargetHooks {
  readonly resolve: ResolveRelation;
  /** What is known at the stream's position. `fresh`: the message has just come. */
  readonly place: (message: RelationMessage, fresh: boolean) => Omit<StreamPlace, 'isCurrent'>;
  /** To be done to storages from here on. */
  readonly take: (steps: readonly ShapeStep[]) => void;
  /** The origin's catalog was asked. */
  readonly learn: (shape: TableShape) => void;
  /** No look-up is under way any more. */
  readonly settled: () => void;
  readonly failed: (error: unknown) => void;
}

export class StreamTargets {
  readonly #hooks: TargetHooks;
  readonly #targets = new Map<number, readonly Target[]>();
  /** The last Relation message of each table: the origin does not repeat it when only our side changes. */
  readonly #messages = new Map<number, RelationMessage>();
  #lookups: Promise<void> = Promise.resolve();
  #pending = 0;

  constructor(hooks: TargetHooks) {
    this.#hooks = hooks;
  }

  of(oid: number): readonly Target[] {
    return this.#targets.get(oid) ?? [];
  }

  /** Whether look-ups are under way. */
  get pending(): boolean {
    return this.#pending > 0;
  }

  /** A Relation message has come: it is sent before the first row of a table and after every change of it. */
  relation(message: RelationMessage): void {
    this.#messages.set(message.oid, message);
    void this.#lookUp([message], true);
  }

  /** From here on rows for these storages without key are hashed upstream. */
  rehash(oid: number, storageIds: readonly number[]): void {
    const targets = this.of(oid).map((one) =>
      one.key.length === 0 && storageIds.includes(one.storage.id) ? { ...one, rehash: true } : one,
    );
    this.#targets.set(oid, targets);
  }

  /** Storages came or went: all relations seen so far are looked up again. */
  again(): Promise<void> {
    return this.#lookUp([...this.#messages.values()], false);
  }

  #lookUp(messages: readonly RelationMessage[], fresh: boolean): Promise<void> {
    this.#pending++;
    this.#lookups = this.#lookups.then(() => this.#resolve(messages, fresh));
    return this.#lookups;
  }

  async #resolve(messages: readonly RelationMessage[], fresh: boolean): Promise<void> {
    try {
      for (const message of messages) {
        const place = this.#hooks.place(message, fresh);
        const { targets, asked, steps } = await this.#hooks.resolve(message, { ...place, isCurrent: fresh && place.mayLearn });
        this.#hooks.take(steps);
        this.#targets.set(
          message.oid,
          targets.map((one) => target(one)),
        );
        if (asked !== null && place.mayLearn) this.#hooks.learn(asked);
      }
    } catch (error) {
      this.#hooks.failed(error);
      return;
    }
    this.#pending--;
    if (this.#pending === 0) this.#hooks.settled();
  }
}

function target({ storage, columns, spool, rehash }: ResolvedTarget): Target {
  const isKey = storage.columns.map((column) => storage.keyAttnums.includes(column.attnum));
  const key = storage.keyAttnums.map((attnum) => columns[storage.columns.findIndex((column) => column.attnum === attnum)] ?? -1);
  return {
    storage,
    columns,
    key,
    keyOnly: columns.map((place, index) => (isKey[index] === true ? place : -1)),
    spool,
    rehash,
  };
}
