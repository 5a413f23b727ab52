/** What a view's query reads, asked in the caller's session. */
import { type ReadRelation, relationsReadSql } from '../catalog/view-inputs.ts';
import type { CallerSession } from './caller-session.ts';
import { perform, type StatementContext } from './context.ts';

/** Every relation the view `view` (quoted name) reads, plain views looked through. */
export async function readRelations(context: StatementContext, session: CallerSession, view: string): Promise<ReadRelation[]> {
  const oid = (await session.query('SELECT $1::pg_catalog.regclass::oid', [view], { quiet: true })).rows[0]?.[0];
  return (await perform(context, session, [relationsReadSql('$1')], { oid })) as ReadRelation[];
}
