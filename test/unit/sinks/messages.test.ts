import { describe, expect, it } from 'vitest';
import { type MessageMaker, type MessageSpec, messageMaker, type RowChange } from '../../../src/sinks/formats/messages.ts';
import { column } from './columns.ts';

const columns = [column('id', 'int4', false), column('name', 'text'), column('price', 'numeric')];
const spec: MessageSpec = { columns, key: [0], keyFormat: { kind: 'json' }, valueFormat: { kind: 'json' }, envelope: 'upsert' };

function maker(changed: Partial<MessageSpec>): MessageMaker {
  const made = messageMaker({ ...spec, ...changed });
  if ('problem' in made) throw new Error(made.problem);
  return made;
}

/** Messages as `key => value`. */
function messages(changed: Partial<MessageSpec>, change: RowChange): string[] {
  return maker(changed)
    .messages(change, {})
    .map(({ key, value }) => `${key} => ${value}`);
}

const insert = { before: null, after: ['1', 'mill', '2.50'] };
const update = { before: ['1', 'mill', '2.50'], after: ['1', 'wheel', null] };
const rekey = { before: ['1', 'mill', '2.50'], after: ['2', 'mill', '2.50'] };
const remove = { before: ['1', 'mill', '2.50'], after: null };

describe('ENVELOPE UPSERT', () => {
  it('writes the row at its key, and a tombstone when it is gone', () => {
    expect(messages({}, insert)).toEqual(['{"id":1} => {"id":1,"name":"mill","price":"2.50"}']);
    expect(messages({}, update)).toEqual(['{"id":1} => {"id":1,"name":"wheel","price":null}']);
    expect(messages({}, remove)).toEqual(['{"id":1} => null']);
  });

  it('ends the old key when the key changes', () => {
    expect(messages({}, rekey)).toEqual(['{"id":1} => null', '{"id":2} => {"id":2,"name":"mill","price":"2.50"}']);
  });

  it('has the key columns in the order in which they were named', () => {
    expect(messages({ key: [1, 0] }, remove)).toEqual(['{"name":"mill","id":1} => null']);
  });

  it('needs a key', () => {
    expect(messageMaker({ ...spec, key: null })).toEqual({ problem: 'key_required' });
  });

  it('takes one column as TEXT, and no more', () => {
    expect(messages({ keyFormat: { kind: 'text' } }, insert)).toEqual(['1 => {"id":1,"name":"mill","price":"2.50"}']);
    expect(messageMaker({ ...spec, key: [0, 1], keyFormat: { kind: 'text' } })).toEqual({ problem: 'one_column_only', format: 'TEXT' });
    expect(messageMaker({ ...spec, valueFormat: { kind: 'bytes' } })).toEqual({ problem: 'one_column_only', format: 'BYTES' });
  });

  it('a NULL as TEXT is empty and not a tombstone', () => {
    const [message] = maker({ columns: columns.slice(1, 2), valueFormat: { kind: 'text' } }).messages({ before: null, after: [null] }, {});
    expect(message?.value).toEqual(Buffer.alloc(0));
  });
});

describe('ENVELOPE DEBEZIUM', () => {
  const debezium = { envelope: 'debezium' } as const;

  it('writes before and after, and no tombstone', () => {
    expect(messages(debezium, insert)).toEqual(['{"id":1} => {"before":null,"after":{"id":1,"name":"mill","price":"2.50"}}']);
    expect(messages(debezium, update)).toEqual([
      '{"id":1} => {"before":{"id":1,"name":"mill","price":"2.50"},"after":{"id":1,"name":"wheel","price":null}}',
    ]);
    expect(messages(debezium, remove)).toEqual(['{"id":1} => {"before":{"id":1,"name":"mill","price":"2.50"},"after":null}']);
  });

  it('without a key an update is a delete and an insert', () => {
    expect(messages({ ...debezium, key: null }, update)).toEqual([
      'null => {"before":{"id":1,"name":"mill","price":"2.50"},"after":null}',
      'null => {"before":null,"after":{"id":1,"name":"wheel","price":null}}',
    ]);
  });

  it('does not put a change into TEXT', () => {
    expect(messageMaker({ ...spec, ...debezium, valueFormat: { kind: 'text' } })).toEqual({
      problem: 'no_envelope_in_format',
      format: 'TEXT',
    });
  });
});

describe('Avro messages', () => {
  const avro = { keyFormat: { kind: 'avro' }, valueFormat: { kind: 'avro' } } as const;

  it('begin with a zero and the number of the schema; the partition is chosen without them', () => {
    const made = maker(avro);
    expect(made.keySchema).toMatchObject({ name: 'row' });
    expect(made.valueSchema).toMatchObject({ name: 'envelope' });
    const [message] = made.messages(insert, { key: 258, value: 7 });
    expect(message?.key?.toString('hex')).toBe('000000010202');
    expect(message?.value?.subarray(0, 5).toString('hex')).toBe('0000000007');
    expect(message?.partitionBy?.toString('hex')).toBe('02');
  });

  it('names a column that cannot be written', () => {
    const odd = column('odd', { typeName: 'record', typmod: -1, typeKind: 'p' });
    expect(messageMaker({ ...spec, ...avro, columns: [...columns, odd] })).toMatchObject({
      problem: 'unsupported_column',
      unsupported: { column: 'odd', type: 'record', format: 'AVRO' },
    });
  });
});
