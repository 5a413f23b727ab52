/** Pipelines in which Millrace and Postgres once differed, shrunk. */
import { bind, close, describe, flush } from '../../../src/wire/encode.ts';
import {
  bound,
  copyData,
  copyDone,
  copyFail,
  executed,
  failingSecret,
  insertingSecret,
  joined,
  prepare,
  type Step,
  same,
  showSources,
  showTables,
  simple,
  step,
  synced,
  wrongSource,
} from './pipeline-steps.ts';

const copyIn = same('COPY t FROM STDIN');
const one = same('SELECT 1');
const whole = (name: string, text: ReturnType<typeof same>): Step[] => [prepare(name, text), bound('', name, []), executed('', 0)];

export const found: Readonly<Record<string, readonly Step[]>> = {
  'a simple COPY with a synced batch behind it': [
    ...[simple(copyIn), copyData('7\n'), copyDone, prepare('', joined(one, one)), synced],
    ...[step('Close P', describe('P', '', 'utf8')), simple(copyIn), copyData('7\n'), copyDone, ...whole('', showSources), synced],
  ],
  'a Sync among the data of a COPY that fails, and a statement of ours behind it': [
    ...[...whole('', copyIn), copyData('x\n'), synced, copyDone, synced, simple(showSources), ...whole('', showTables), synced],
    ...[...whole('', copyIn), synced, copyData('x\n'), copyDone, simple(showSources), synced, simple(showSources)],
  ],
  'a message that is no COPY data, in a text with a candidate': [
    simple(joined(copyIn, same('DROP TABLE live_t'))),
    ...whole('', one),
    synced,
  ],
  'the same, with a statement of ours held behind it': [simple(joined(showSources, copyIn)), ...whole('', showSources), synced],
  'a syntax error behind what has not run yet': [
    simple(joined(one, same('SELEC 1'), showSources)),
    ...[simple(joined(showSources, same('SELEC 1'))), prepare('', joined(showSources, same('SELEC 1'))), synced],
    ...[simple(same('BEGIN')), simple(joined(showSources, same('SELEC 1'))), simple(one)],
  ],
  'a COPY by Execute with a Sync among its data, behind a stray CopyFail': [
    ...[copyFail, prepare('', copyIn), bound('', '', []), executed('', 0), synced, copyData('7\n'), copyDone, synced],
    ...[executed('', 0), simple(one)],
  ],
  'the portal of a failed Query of ours in a block': [simple(same('BEGIN')), simple(failingSecret), executed('', 0), synced],
  'result formats that are not as many as columns': [prepare('', showSources), bound('', '', [0, 0]), executed('', 0), synced],
  'the portal in front of a Query of ours in a failed transaction': [
    ...[
      ...whole('', same('BEGIN')),
      prepare('', joined(one, one)),
      synced,
      simple(joined(showSources, showSources)),
      executed('', 0),
      synced,
    ],
  ],
  'no portal of a text of ours whose second statement is wrong': [
    ...[simple(joined(same('BEGIN'), same('SELECT x'), showSources)), executed('', 0), synced, simple(same('ROLLBACK'))],
    ...[simple(joined(same('BEGIN'), same('SELECT 1/0'), showSources)), executed('', 0), synced],
  ],
  'a Query of ours behind a COPY that has swallowed its Sync': [
    ...[...whole('', copyIn), synced, copyDone, simple(showSources), simple(copyIn), copyData('7\n'), copyDone, synced],
  ],
  'a portal that its transaction has taken along': [
    ...[...whole('', showSources), synced, executed('', 0), simple(one), synced],
    ...[simple(same('BEGIN')), prepare('a', showTables), bound('b', 'a', []), executed('b', 1), ...whole('', same('COMMIT'))],
    ...[executed('b', 1), synced],
  ],
  'the description of a statement of ours in a failed transaction': [
    ...[prepare('a', showTables), synced, simple(same('BEGIN')), simple(same('SELECT 1/0'))],
    ...[step('Describe S a', describe('S', 'a', 'utf8')), synced],
  ],
  'an unnamed statement behind a Parse that failed': [
    ...[...whole('', one), synced, prepare('', joined(one, showSources)), synced, bound('', '', []), synced],
    ...[...whole('', showSources), synced, prepare('', wrongSource), synced, bound('', '', []), synced],
  ],
  'an unnamed statement of ours behind a Query that was skipped': [
    ...[...whole('', showSources), synced, executed('', 0), simple(one), synced, step('Describe S', describe('S', '', 'utf8')), synced],
  ],
  'a finished portal of ours, run again': [
    ...[simple(same('BEGIN')), prepare('', insertingSecret), bound('c', '', []), executed('c', 0), executed('c', 0), synced],
  ],
  'a candidate for the unnamed statement in a failed transaction': [
    ...[simple(same('BEGIN')), simple(same('SELECT 1/0')), prepare('', same('DROP TABLE IF EXISTS none_such')), synced],
    ...[simple(same('ROLLBACK')), simple(same('BEGIN')), simple(same('SELECT 1/0'))],
    ...[...whole('', same('ROLLBACK TO none_such')), synced, ...whole('', same('')), prepare('', same('DROP TABLE plain_t')), synced],
  ],
  'a Query behind a batch that has only bound, with a candidate that is not ours': [
    ...[prepare('a', one), bound('', 'a', []), prepare('', same('DROP TABLE plain_t')), simple(one)],
    ...[bound('', 'a', []), simple(one), prepare('', same('DROP TABLE plain_t')), simple(one), synced],
  ],
  'a Query of ours behind an Execute without Sync': [
    ...[prepare('a', one), bound('a', 'a', []), executed('a', 0), simple(same('DROP TABLE live_t')), executed('a', 0), synced],
    ...[bound('a', 'a', []), executed('a', 0), simple(joined(showTables, one)), executed('a', 0), synced],
  ],
  'a Close that is skipped, with its statement used in the next batch': [
    ...[prepare('b', one), step('Describe P', describe('P', '', 'utf8')), step('Close S b', close('S', 'b', 'utf8')), synced],
    ...[bound('', 'b', []), executed('', 0), synced, prepare('b', one), synced],
  ],
  'a Parse that is skipped, with its statement used in the next batch': [
    ...[prepare('a', one), synced, executed('', 0), prepare('b', one), prepare('', one), synced],
    ...[...whole('b', one), synced, bound('', 'b', []), executed('', 0), synced, bound('', '', []), synced, bound('', 'a', []), synced],
  ],
  'a Parse like one before it that fails': [
    prepare('b', same('SELEC 1')),
    synced,
    prepare('a', same('SELEC 1')),
    synced,
    bound('', 'a', []),
    synced,
  ],
  'the unnamed portal in front of a Query with a candidate': [
    ...[...whole('', same('BEGIN')), simple(same('SELECT x; DROP TABLE IF EXISTS none_such')), executed('', 0), synced],
  ],
  'statements prepared behind DEALLOCATE ALL': [
    ...[...whole('a', same('DEALLOCATE ALL')), synced, prepare('b', same('DEALLOCATE ALL')), simple(one), prepare('b', one), synced],
    ...[prepare('c', one), simple(same('DEALLOCATE ALL')), prepare('c', one), bound('', 'c', []), executed('', 0), synced],
  ],
  'a Query of ours behind a ROLLBACK without Sync': [
    ...[simple(same('BEGIN')), simple(same('SELECT 1/0')), ...whole('', same('ROLLBACK')), simple(showSources), synced],
    ...[simple(same('BEGIN')), simple(same('SELECT 1/0')), ...whole('', same('')), simple(showSources), synced, simple(same('ROLLBACK'))],
    ...[simple(same('BEGIN')), simple(same('SELECT 1/0')), ...whole('', same('ROLLBACK')), simple(joined(showSources, one)), synced],
    ...[...whole('', same('BEGIN')), simple(showSources), simple(same('SELECT 1/0')), synced, simple(showSources)],
  ],
  'an unnamed statement behind a failed Query of ours': [simple(failingSecret), bound('', '', []), simple(one), synced],
};

/** The same, for servers whose extended protocol knows implicit transaction blocks. */
export const foundInBlocks: Readonly<Record<string, readonly Step[]>> = {
  'what needs or cannot be in a transaction block, in front of a statement of ours': [
    simple(joined(same('VACUUM t'), showSources)),
    simple(joined(same('LOCK TABLE t'), showSources)),
    simple(joined(same('DECLARE c CURSOR FOR SELECT generate_series(1, 5)'), showSources, same('FETCH 2 FROM c'))),
    simple(joined(same('BEGIN'), same('COMMIT'), same('LOCK TABLE t'), showSources, same('SAVEPOINT s'))),
  ],
};

const describedStatement = (name: string): Step => step(`Describe S ${name}`, describe('S', name, 'utf8'));
const describedPortal = (name: string): Step => step(`Describe P ${name}`, describe('P', name, 'utf8'));
const flushed = step('Flush', flush);
/** One parameter where the statement has none. */
const boundWithParameter = step('Bind with a parameter', bind('', '', ['1'], 'utf8'));

/** What drivers send that prepare everything, for statements of ours with and without rows. */
export const driverFlows: Readonly<Record<string, readonly Step[]>> = Object.fromEntries(
  Object.entries({ rows: showTables, 'no rows': insertingSecret, 'an error': failingSecret, 'a syntax error': wrongSource }).flatMap(
    ([kind, text]): [string, Step[]][] => {
      const carriedOut = [bound('', 'd', []), describedPortal(''), executed('', 0), synced];
      return [
        [
          `${kind}: all at once (node-postgres, psycopg)`,
          [...[prepare('', text), bound('', '', []), describedPortal(''), executed('', 0), synced]],
        ],
        [
          `${kind}: prepared by name, used twice (JDBC, npgsql)`,
          [prepare('d', text), describedStatement('d'), synced, ...carriedOut, ...carriedOut],
        ],
        [
          `${kind}: described first, results in binary (pgx)`,
          [prepare('d', text), describedStatement('d'), synced, bound('', 'd', [1]), executed('', 0), synced],
        ],
        [
          `${kind}: described up to Flush (postgres.js, asyncpg)`,
          [prepare('', text), describedStatement(''), flushed, bound('', '', [1]), executed('', 0), synced],
        ],
        [
          `${kind}: in portions (cursors)`,
          [
            simple(same('BEGIN')),
            prepare('', text),
            bound('c', '', []),
            executed('c', 2),
            flushed,
            executed('c', 2),
            synced,
            simple(same('COMMIT')),
          ],
        ],
        [`${kind}: with a parameter too many`, [prepare('', text), boundWithParameter, executed('', 0), synced]],
      ];
    },
  ),
);
