/**
 * Sends the steps of a batch to the upstream, without waiting.
 * Invariant: what is sent for one storage takes effect in the order of its steps; every answer's promise is put into `sent`, in order.
 */
import { type Storage, spoolTable, stagingTable, storageColumn, storageTable } from '../catalog/model.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { applyStaged, clearStorage, insertColumns, stagingColumns } from './apply-sql.ts';
import type { Step } from './change-batch.ts';

/** Rows up to which statements prepared on small deltas are used, and deltas cleared by DELETE: TRUNCATE costs more and voids prepared plans. */
export const fewRows = 1000;

export function sendStep(session: RawConnection, storage: Storage, step: Step, sent: Promise<unknown>[]): void {
  const copy = (sql: string, rows: readonly Buffer[]): void => {
    const into = session.copyIn(sql);
    for (const frames of rows) into.writeFrames(frames);
    sent.push(into.finish());
  };
  switch (step.kind) {
    case 'rows': {
      if (step.insertRows > 0) copy(`COPY ${storageTable(storage.id)} (${insertColumns(storage).join(', ')}) FROM STDIN`, step.inserts);
      if (step.changeRows === 0) return;
      const staging = stagingTable(storage.id);
      copy(`COPY ${staging} (${stagingColumns(storage).join(', ')}) FROM STDIN`, step.changes);
      const few = step.changeRows <= fewRows;
      const name = `a${storage.id}_${shapeName(step.shape)}`;
      applyStaged(storage, step.shape).forEach((sql, index) => {
        sent.push(few ? session.execute(`${name}_${index}`, sql) : session.query(sql));
      });
      sent.push(few ? session.execute(`c${storage.id}`, `DELETE FROM ${staging}`) : session.query(`TRUNCATE ${staging}`));
      return;
    }
    case 'spool':
      copy(`COPY ${spoolTable(storage.id)} (chunk, xid, ${stagingColumns(storage).join(', ')}) FROM STDIN`, step.rows);
      return;
    case 'truncate':
      sent.push(session.query(clearStorage(storage)));
      return;
    case 'rekey':
      sent.push(moveRow(session, storage, step));
  }
}

function shapeName(shape: Extract<Step, { kind: 'rows' }>['shape']): string {
  return [shape.inserts, shape.updates, shape.deletes, shape.repeats, shape.keeps].map((set) => (set ? '1' : '0')).join('');
}

function moveRow(session: RawConnection, storage: Storage, step: Extract<Step, { kind: 'rekey' }>): Promise<unknown> {
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
  return session.execute(`rekey_${storage.id}`, sql, params);
}
