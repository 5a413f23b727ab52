/**
 * Values of an enum that have got other labels at the origin.
 * Invariant: in stream order, as the origin did it: what was stored under the old label is shown under the new one from the rows on that come after.
 */
import type { Storage } from '../catalog/model.ts';
import { storageColumn, storageTable } from '../catalog/model.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { rehashRows } from './apply-sql.ts';
import type { ShapeStep } from './change-batch.ts';
import type { EngineContext } from './context.ts';
import type { Epoch } from './epoch.ts';
import { isPassing } from './passing.ts';
import { remakeViews } from './view-remake.ts';

type Relabel = Extract<ShapeStep, { kind: 'relabel' }>;
type WithinEpoch = Pick<Epoch, 'fail' | 'run' | 'leaveOut'>;

/** `now`: the storage as it will be. Answers whether all labels could be followed. */
export async function relabel(engine: EngineContext, epoch: WithinEpoch, now: Storage, step: Relabel): Promise<void> {
  const { session, log, state } = engine;
  const renamed: { from: string; to: string }[] = [];
  for (const pair of ordered(step.labels)) {
    if (step.type === 'text') {
      renamed.push(pair);
      continue;
    }
    const [found] = await session.query(
      `SELECT count(*) FILTER (WHERE e.enumlabel = ${quoteLiteral(pair.from)}), count(*) FILTER (WHERE e.enumlabel = ${quoteLiteral(pair.to)})
         FROM pg_catalog.pg_enum e WHERE e.enumtypid = pg_catalog.to_regtype(${quoteLiteral(step.type)})`,
    );
    const [has, there] = found?.rows[0] ?? [];
    // Another table of the type was told of first, or a copy brought the new one.
    if (has !== '1') continue;
    if (there === '1') {
      renamed.push(pair);
      continue;
    }
    await session.query('SAVEPOINT relabel');
    try {
      await session.query(`ALTER TYPE ${step.type} RENAME VALUE ${quoteLiteral(pair.from)} TO ${quoteLiteral(pair.to)}`);
      await session.query('RELEASE SAVEPOINT relabel');
    } catch (error) {
      if (!(error instanceof PostgresError) || isPassing(error)) throw error;
      // The type is somebody else's: it gets the new value when a row has it, and what there is keeps the old one.
      await session.query('ROLLBACK TO SAVEPOINT relabel; RELEASE SAVEPOINT relabel');
      log.warn({ type: step.type, ...pair, err: error }, 'a value of an enum cannot be renamed as at the origin');
    }
  }
  const columns = now.columns.filter(({ attnum }) => step.attnums.includes(attnum));
  await epoch.run(
    renamed.flatMap(({ from, to }) =>
      columns.map(({ attnum, type }) => {
        const [name, old, wanted] = [storageColumn(attnum), quoteLiteral(from), quoteLiteral(to)];
        return type.endsWith('[]')
          ? `UPDATE ${storageTable(now.id)} SET ${name} = array_replace(${name}, ${old}, ${wanted}) WHERE ${old} = ANY (${name})`
          : `UPDATE ${storageTable(now.id)} SET ${name} = ${wanted} WHERE ${name} = ${old}`;
      }),
    ),
  );
  if (now.keyAttnums.length === 0)
    await epoch.run([
      rehashRows(now),
      `UPDATE millrace.storage SET columns = ${quoteLiteral(JSON.stringify(now.columns))}::jsonb WHERE id = ${now.id}`,
    ]);
  const versions = [...state.tables.values()].flatMap(({ id, storageId }) => (storageId === now.id ? [id] : []));
  // What they made of the label as text, and where their queries name it.
  await remakeViews(engine, epoch, versions, step.attnums);
}

/** One after the other: a label is free before another value gets it. Labels that go round in a circle take a detour. */
export function ordered(labels: Relabel['labels']): { from: string; to: string }[] {
  const waiting = [...labels];
  const done: { from: string; to: string }[] = [];
  const taken = (to: string): boolean => waiting.some(({ from }) => from === to);
  while (waiting.length > 0) {
    const next = waiting.findIndex(({ to }) => !taken(to));
    if (next >= 0) done.push(...waiting.splice(next, 1));
    else {
      const [first] = waiting;
      if (first === undefined) break;
      const detour = `${first.from} millrace`;
      done.push({ from: first.from, to: detour });
      waiting[0] = { from: detour, to: first.to };
    }
  }
  return done;
}
