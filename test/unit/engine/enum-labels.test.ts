/** Values that an enum has got at the origin. */
import { expect, test } from 'vitest';
import { addedLabels } from '../../../src/engine/enum-labels.ts';

const added = (labels: string[], there: string[]): string[] => addedLabels('public.mood', labels, new Set(there));

test('in the order of the origin', () =>
  expect(added(['awful', 'sad', 'so so', 'ok', "it's great"], ['sad', 'ok'])).toEqual([
    "ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'awful' BEFORE 'sad'",
    "ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'so so' AFTER 'sad'",
    "ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'it''s great' AFTER 'ok'",
  ]));

test('none where nothing is missing, though there is more here', () => expect(added(['a'], ['a', 'b'])).toEqual([]));
