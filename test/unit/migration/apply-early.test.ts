/** What waits before a cutover asks for its locks is applied in the cutover's own transaction. */
import { describe, expect, test } from 'vitest';
import { applyEarly, type Following } from '../../../src/migration/follow.ts';
import { Touched, type TouchingTransaction } from '../../../src/migration/touched.ts';
import { PostgresError } from '../../../src/replication/postgres-error.ts';
import { transaction } from './transactions.ts';

/** A cutover's transaction in which `transactions` wait, of which `snapshot` sees some. */
function cutover(
  transactions: readonly TouchingTransaction[],
  snapshot: string,
  options: { readonly kind?: string; readonly fails?: string } = {},
) {
  const said: string[] = [];
  const touched = new Touched();
  for (const one of transactions) touched.add(one);
  const work = {
    query: async (sql: string) => {
      said.push(sql.split(/[; ]/, 2).join(' '));
      return [{ tag: '', rows: [[snapshot]] }];
    },
    execute: async (_name: string, _sql: string, params: readonly string[]) => {
      said.push(`apply ${params[0]}`);
      if (options.fails !== undefined) throw new PostgresError({ severity: 'ERROR', code: options.fails, message: 'no' });
      return { tag: 'DELETE 1', rows: [] };
    },
  };
  const following = {
    truth: 'target',
    migration: { source: { owner: { name: 'o' } }, definition: { kind: options.kind ?? 'alter' } },
    sessions: { work },
    feed: { touched },
    sync: { width: 1, applyAnew: ['DELETE'] },
  } as unknown as Following;
  return { said, following };
}

const applied = (said: readonly string[]): readonly string[] => said.filter((sql) => sql.startsWith('apply'));

describe('what waits before the locks', () => {
  test('is applied as far as the snapshot sees it, each transaction once', async () => {
    const { said, following } = cutover([transaction(1, 'a'), transaction(2, 'b')], '2:2:');
    const taken = new Set<TouchingTransaction>();
    await applyEarly(following, taken);
    expect(applied(said)).toEqual(['apply {"a"}']);
    following.feed.touched.add(transaction(1, 'c'));
    await applyEarly(following, taken);
    expect(applied(said)).toEqual(['apply {"a"}', 'apply {"c"}']);
    expect([...taken].map(({ xid }) => xid)).toEqual([1, 1]);
    // Nothing of it is committed yet.
    expect(following.feed.touched.count).toBe(3);
  });

  test('goes on waiting when it cannot be applied, and the transaction goes on', async () => {
    const { said, following } = cutover([transaction(1, 'a')], '2:2:', { fails: '23505' });
    const taken = new Set<TouchingTransaction>();
    await applyEarly(following, taken);
    expect(said.at(-1)).toBe('ROLLBACK TO');
    expect(taken.size).toBe(0);
  });

  test('is left alone where every row has to be compared, and where users write the same rows', async () => {
    const truncated = cutover([transaction(1, 'a'), { ...transaction(1), keys: null }], '2:2:');
    const shared = cutover([transaction(1, 'a')], '2:2:', { kind: 'move' });
    for (const { said, following } of [truncated, shared]) {
      const taken = new Set<TouchingTransaction>();
      await applyEarly(following, taken);
      expect(applied(said)).toEqual([]);
      expect(taken.size).toBe(0);
    }
  });
});
