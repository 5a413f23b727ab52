/**
 * What it means that a publication has a table no longer, or publishes other changes of it than it did. Pure.
 * Invariant: rows that come or go without being sent are never unsaid, and the way back is said.
 */
import type { Storage } from '../catalog/model.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { MissedRows } from './missed-rows.ts';
import { missedError } from './relation-errors.ts';
import type { SourceRow } from './source-row.ts';

/** What a publication publishes of a table (OriginTable). */
export interface PublishedChanges {
  readonly published: boolean;
  readonly sentAs: string;
}

/** Why a storage is no longer what the table has; null: it is. */
export function unsent(
  storage: Storage,
  now: PublishedChanges,
  { name, publication }: Pick<SourceRow, 'name' | 'publication'>,
): MissedRows | null {
  const shown = `${storage.originSchema}.${storage.originName}`;
  if (!now.published) {
    const reference = `${quoteIdentifier(storage.originSchema)}.${quoteIdentifier(storage.originName)}`;
    return {
      storageId: storage.id,
      error: {
        code: '42704',
        message: `source table ${shown} is no longer in publication "${publication}"`,
        detail: 'Changes made since it was taken out are not known here.',
        hint: `On the origin: ALTER PUBLICATION ${quoteIdentifier(publication)} ADD TABLE ${reference}; then here: ALTER SOURCE ${name} RESYNC;`,
        resync: true,
      },
    };
  }
  if (now.sentAs === storage.sentAs) return null;
  const [had, has] = [storage.sentAs, now.sentAs].map((sent) => sent.split(' ')[0] ?? '');
  const problem =
    had === has
      ? `has another row filter in publication "${publication}"`
      : `is published with other operations by publication "${publication}": ${named(has)}`;
  return { storageId: storage.id, error: missedError({ reference: shown, problem, source: name }) };
}

const operations = ['insert', 'update', 'delete', 'truncate'];

/** Operations of which these are the first letters. */
const named = (letters: string | undefined): string => operations.filter(([first]) => letters?.includes(first ?? '')).join(', ') || 'none';
