/** Rows that Millrace makes, in the binary format: byte for byte what Postgres sends for the same values. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { FieldDescription } from '../../../src/statements/caller-session.ts';
import { dataRowValues } from '../../../src/wire/decode.ts';
import { describe as describeMessage, execute, message, parse, sync } from '../../../src/wire/encode.ts';
import { encodeRows } from '../../../src/wire/result-rows.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { fakeRunner, startProxy, type TestProxy } from './proxy.ts';
import { RawClient, type RawMessage, shown } from './raw-client.ts';

let postgres: TestPostgres;
let proxy: TestProxy;
let direct: RawClient;
let through: RawClient;

beforeAll(async () => {
  postgres = await startPostgres();
  proxy = await startProxy(postgres.address, fakeRunner());
  direct = await RawClient.open(postgres.port);
  through = await RawClient.open(proxy.port);
});
afterAll(async () => {
  direct?.destroy();
  through?.destroy();
  await proxy?.stop(0);
  await postgres?.stop();
});

/** As asyncpg and pgx: the unnamed statement is described, then bound with result formats. */
async function fetch(client: RawClient, sql: string, formats: readonly number[]): Promise<RawMessage[]> {
  client.write(
    parse('', sql, 'utf8'),
    describeMessage('S', '', 'utf8'),
    message(0x42, [Buffer.from([0, 0, 0, 0, 0, 0, 0, formats.length, ...formats.flatMap((format) => [0, format])])]),
    describeMessage('P', '', 'utf8'),
    execute('', 'utf8'),
    sync,
  );
  return await client.until('Z');
}

const asPostgres = "SELECT 'ü' || n AS name, n AS size FROM generate_series(1, 3) n";

describe('binary rows', () => {
  it.each([[[1]], [[0, 1]], [[1, 0]], [[1, 1]], [[0]], [[]]])('of an extended statement, result formats %j', async (formats) => {
    const expected = await fetch(direct, asPostgres, formats);
    const got = await fetch(through, 'SHOW SOURCES', formats);
    const bodies = (messages: readonly RawMessage[]): unknown[] =>
      messages.filter(({ tag }) => tag === 'T' || tag === 'D').map(({ tag, body }) => [tag, body.toString('hex')]);
    expect(bodies(got)).toEqual(bodies(expected));
    expect(bodies(got)).toHaveLength(5);
  });

  it('no other format is known', async () => {
    for (const formats of [[2], [1, 7]]) {
      const errors = async (client: RawClient, sql: string): Promise<string[]> =>
        shown(await fetch(client, sql, formats)).filter((line) => line.startsWith('E'));
      expect(await errors(direct, asPostgres)).toHaveLength(1);
      expect(await errors(through, 'SHOW SOURCES')).toEqual(await errors(direct, asPostgres));
    }
  });

  it.each([
    ['text', ['', 'ü', "'"]],
    ['varchar', ['x']],
    ['name', ['a_name']],
    ['"char"', ['x']],
    ['json', ['{"a": [1, null]}']],
    ['jsonb', ['{"a": [1, null]}', '"ü"']],
    ['boolean', ['t', 'f']],
    ['smallint', ['-32768', '0', '32767']],
    ['integer', ['-2147483648', '7', '2147483647']],
    ['bigint', ['-9223372036854775808', '9223372036854775807']],
    ['oid', ['0', '4294967295']],
    ['real', ['0', '-0', '1.5', '3.4028235e+38', '1e-45', 'Infinity', '-Infinity']],
    ['double precision', ['0', '-0', '0.1', '1.7976931348623157e+308', '5e-324', 'Infinity', '-Infinity']],
    [
      'numeric',
      [
        '0',
        '0.00',
        '1',
        '-1',
        '10000',
        '1795306705816',
        '0.0001',
        '-0.00001',
        '123456789.987654321',
        '1e30',
        '1.50',
        'NaN',
        'Infinity',
        '-Infinity',
      ],
    ],
    ['uuid', ['00112233-4455-6677-8899-aabbccddeeff']],
    ['bytea', ['\\x', '\\x00ff10']],
  ] as const)('of type %s', async (type, values) => {
    const sql = `SELECT v::${type} AS v FROM unnest(ARRAY[${values.map((value) => `'${value.replaceAll("'", "''")}'`)}, NULL]) AS v`;
    const rows = (messages: readonly RawMessage[]): Buffer[] =>
      messages.filter(({ tag }) => tag === 'D').map(({ body }) => message(0x44, [body]));
    const inText = await fetch(direct, sql, [0]);
    const typeOid = inText.find(({ tag }) => tag === 'T')?.body.readUInt32BE(2 + 'v'.length + 1 + 6) ?? 0;
    const fields: FieldDescription[] = [{ name: 'v', typeOid, typeModifier: -1 }];
    const encoded = encodeRows({ fields, rows: rows(inText).map((row) => dataRowValues(row, 'utf8')) }, [1], 'utf8');
    expect(encoded).toEqual(rows(await fetch(direct, sql, [1])));
    expect(encoded).toHaveLength(values.length + 1);
  });

  it('of another type are refused, not sent as text', () => {
    const fields = [{ name: 'at', typeOid: 1186, typeModifier: -1 }];
    expect(() => encodeRows({ fields, rows: [] }, [1], 'utf8')).toThrow('column "at" has no binary format here; ask for it as text');
  });
});
