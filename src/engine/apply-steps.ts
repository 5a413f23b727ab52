/**
 * Sends the steps of a batch to the upstream, without waiting.
 * Invariant: what is sent for one storage takes effect in the order of its steps; every answer's promise is put into `sent`, in order.
 */
import { type Storage, spoolTable, stagingTable, storageColumn, storageTable } from '../catalog/model.ts';
import type { Execution, RawConnection } from '../replication/session-contract.ts';
import { applyStaged, clearStorage, insertColumns, stagingColumns } from './apply-sql.ts';
import type { ShapeStep, Step } from './change-batch.ts';
import type { Direct } from './direct-upkeep.ts';
import { isFew, rowsExecutions } from './row-arrays.ts';

/** A step that takes no looking at what there is. */
export type PlainStep = Exclude<Step, ShapeStep>;

export const isShapeStep = (step: Step): step is ShapeStep =>
  step.kind === 'widen' || step.kind === 'relabel' || step.kind === 'copy again' || step.kind === 'missed';

/** What goes by COPY, and views may take directly. */
export const isOfManyRows = (step: PlainStep): boolean => step.kind === 'rows' && !isFew(step);

/** A step as prepared statements; null when it needs COPY. */
export function stepExecutions(storage: Storage, step: PlainStep): Execution[] | null {
  switch (step.kind) {
    case 'rows':
      return isFew(step) ? rowsExecutions(storage, step) : null;
    case 'spool':
      return null;
    case 'truncate':
      return [{ name: `e${storage.id}`, sql: clearStorage(storage) }];
    case 'rekey':
      return [moveRow(storage, step)];
  }
}

/** `direct`: how the views over the storage take many rows without a delta; null: they do not. */
export function sendStep(session: RawConnection, storage: Storage, step: PlainStep, sent: Promise<unknown>[], direct: Direct | null): void {
  const executions = stepExecutions(storage, step);
  if (executions !== null) {
    if (executions.length > 0) sent.push(session.executeAll(executions));
    return;
  }
  const copy = (sql: string, rows: readonly Buffer[]): void => {
    const into = session.copyIn(sql);
    for (const frames of rows) into.writeFrames(frames);
    sent.push(into.finish());
  };
  if (step.kind === 'rows') {
    if (direct !== null) sent.push(session.executeAll([direct.before]));
    if (step.insertRows > 0) copy(`COPY ${storageTable(storage.id)} (${insertColumns(storage).join(', ')}) FROM STDIN`, step.inserts);
    if (step.changeRows > 0) {
      const staging = stagingTable(storage.id);
      copy(`COPY ${staging} (${stagingColumns(storage).join(', ')}) FROM STDIN`, step.changes);
      for (const sql of applyStaged(storage, step.shape)) sent.push(session.query(sql));
      sent.push(session.query(`TRUNCATE ${staging}`));
    }
    if (direct !== null) sent.push(session.executeAll([direct.after]));
  } else if (step.kind === 'spool') {
    copy(`COPY ${spoolTable(storage.id)} (chunk, xid, ${stagingColumns(storage).join(', ')}) FROM STDIN`, step.rows);
  }
}

function moveRow(storage: Storage, step: Extract<Step, { kind: 'rekey' }>): Execution {
  const params: (string | null)[] = [];
  const place = (value: string | null): string => `$${params.push(value)}`;
  const assignments = storage.columns.flatMap((column, index) => {
    const value = step.values[index];
    return value === undefined ? [] : [`${storageColumn(column.attnum)} = ${place(value)}::${column.type}`];
  });
  const key = storage.keyAttnums.map((attnum, index) => {
    const column = storage.columns.find((known) => known.attnum === attnum);
    return `${storageColumn(attnum)} = ${place(step.oldKey[index] ?? null)}::${column?.type ?? 'text'}`;
  });
  const sql = `UPDATE ${storageTable(storage.id)} SET ${assignments.join(', ')} WHERE ${key.join(' AND ')}`;
  return { name: `rekey_${storage.id}`, sql, params };
}
