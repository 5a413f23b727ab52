import { describe, expect, it } from 'vitest';
import { type ChangeHandler, PgoutputDecoder, PgoutputError, type TupleView, valueKind } from '../../../src/replication/pgoutput.ts';
import { cstr, message, tag, tuple, u8, u16, u32, u64, unchanged } from './pgoutput-messages.ts';

type Event = readonly unknown[];

function values(row: TupleView | undefined): readonly unknown[] | undefined {
  if (row === undefined) return undefined;
  return Array.from({ length: row.count }, (_, i) => {
    if (row.kinds[i] === valueKind.null) return null;
    if (row.kinds[i] === valueKind.unchangedToast) return unchanged;
    return row.buffer.toString('utf8', row.starts[i], row.ends[i]);
  });
}

function recorder(): { events: Event[]; decoder: PgoutputDecoder } {
  const events: Event[] = [];
  const handler: ChangeHandler = {
    begin: (...all) => events.push(['begin', ...all]),
    commit: (...all) => events.push(['commit', ...all]),
    origin: (...all) => events.push(['origin', ...all]),
    relation: (relation) => events.push(['relation', relation]),
    type: (...all) => events.push(['type', ...all]),
    insert: (oid, row) => events.push(['insert', oid, values(row)]),
    update: (oid, kind, old, row) => events.push(['update', oid, kind, values(old), values(row)]),
    delete: (oid, kind, old) => events.push(['delete', oid, kind, values(old)]),
    truncate: (...all) => events.push(['truncate', ...all]),
    message: (transactional, lsn, prefix, buffer, start, end) =>
      events.push(['message', transactional, lsn, prefix, buffer.toString('utf8', start, end)]),
  };
  return { events, decoder: new PgoutputDecoder(handler) };
}

/** Decodes in the middle of a larger buffer, as it is in the stream. */
function decode(bytes: Buffer): Event {
  const { events, decoder } = recorder();
  const around = Buffer.concat([Buffer.alloc(7, 0xff), bytes, Buffer.alloc(9, 0xff)]);
  decoder.decode(0x16b374d848n, around, 7, 7 + bytes.length);
  expect(events).toHaveLength(1);
  return events[0] ?? [];
}

const insert = message(tag('I'), u32(16384), tag('N'), tuple('1', null, 'é', ''));
const update = message(tag('U'), u32(16384), tag('K'), tuple('1', null), tag('N'), tuple('2', 'x'));
const relation = message(tag('R'), u32(16384), cstr('public'), cstr('t'), tag('d'), u16(1), u8(1), cstr('id'), u32(23), u32(-1));
const samples = {
  begin: message(tag('B'), u64(0x1_0000_0002n), u64(-5n), u32(4_000_000_000)),
  commit: message(tag('C'), u8(0), u64(5n), u64(6n), u64(7n)),
  origin: message(tag('O'), u64(9n), cstr('elsewhere')),
  relation,
  type: message(tag('Y'), u32(16400), cstr('public'), cstr('mood')),
  insert,
  update,
  delete: message(tag('D'), u32(16384), tag('O'), tuple('1', 'x')),
  truncate: message(tag('T'), u32(2), u8(3), u32(16384), u32(16385)),
  message: message(tag('M'), u8(1), u64(11n), cstr('millrace'), u32(5), Buffer.from('héy!').subarray(0, 5)),
};

describe('PgoutputDecoder', () => {
  it('decodes every message', () => {
    expect(decode(samples.begin)).toEqual(['begin', 0x1_0000_0002n, -5n, 4_000_000_000]);
    expect(decode(samples.commit)).toEqual(['commit', 5n, 6n, 7n]);
    expect(decode(samples.origin)).toEqual(['origin', 9n, 'elsewhere']);
    expect(decode(samples.relation)).toEqual([
      'relation',
      {
        oid: 16384,
        schema: 'public',
        name: 't',
        replicaIdentity: 'd',
        columns: [{ key: true, name: 'id', typeOid: 23, typmod: -1 }],
      },
    ]);
    expect(decode(samples.type)).toEqual(['type', 16400, 'public', 'mood']);
    expect(decode(samples.insert)).toEqual(['insert', 16384, ['1', null, 'é', '']]);
    expect(decode(samples.update)).toEqual(['update', 16384, 'K', ['1', null], ['2', 'x']]);
    expect(decode(samples.delete)).toEqual(['delete', 16384, 'O', ['1', 'x']]);
    expect(decode(samples.truncate)).toEqual(['truncate', [16384, 16385], true, true]);
    expect(decode(samples.message)).toEqual(['message', true, 11n, 'millrace', 'héy!']);
  });

  it('reads OIDs and xids as unsigned', () => {
    expect(decode(message(tag('I'), u32(0xfffffffe), tag('N'), tuple('1')))).toEqual(['insert', 0xfffffffe, ['1']]);
  });

  it('tells the three kinds of update apart', () => {
    expect(decode(message(tag('U'), u32(1), tag('N'), tuple('1', unchanged)))).toEqual(['update', 1, '', undefined, ['1', unchanged]]);
    expect(decode(message(tag('U'), u32(1), tag('O'), tuple('1', 'a'), tag('N'), tuple('1', 'b')))).toEqual([
      'update',
      1,
      'O',
      ['1', 'a'],
      ['1', 'b'],
    ]);
  });

  it('names the system schema, which is sent empty', () => {
    expect(decode(message(tag('Y'), u32(1), cstr(''), cstr('x')))).toEqual(['type', 1, 'pg_catalog', 'x']);
  });

  it('takes rows of the 1600 columns that a table can have', () => {
    const wide = Array.from({ length: 1600 }, (_, i) => (i % 3 === 0 ? null : String(i)));
    expect(decode(message(tag('I'), u32(1), tag('N'), tuple(...wide)))).toEqual(['insert', 1, wide]);
    expect(decode(message(tag('I'), u32(1), tag('N'), tuple()))).toEqual(['insert', 1, []]);
  });

  it('refuses every message that is cut short or too long, and says where', () => {
    for (const sample of Object.values(samples)) {
      for (let length = 0; length < sample.length; length++) {
        const { events, decoder } = recorder();
        // What follows in the buffer must not be taken for a part of the message.
        const around = Buffer.concat([sample.subarray(0, length), Buffer.alloc(40)]);
        const attempt = (): void => decoder.decode(0x16b374d848n, around, 0, length);
        expect(attempt, `${sample.toString('latin1')} cut to ${length}`).toThrow(PgoutputError);
        expect(attempt).toThrow(/^malformed replication message at 16\/B374D848, byte \d+: /);
        expect(events).toEqual([]);
      }
      const { decoder } = recorder();
      const longer = Buffer.concat([sample, Buffer.alloc(1)]);
      expect(() => decoder.decode(1n, longer, 0, longer.length), sample.toString('latin1')).toThrow(PgoutputError);
    }
  });

  it('points at the byte that is wrong', () => {
    const { decoder } = recorder();
    const at = (bytes: Buffer): number => {
      try {
        decoder.decode(1n, bytes, 0, bytes.length);
      } catch (error) {
        if (error instanceof PgoutputError) return error.byte;
      }
      return -1;
    };
    expect(at(tag('z'))).toBe(0);
    expect(at(message(tag('I'), u32(1), tag('K')))).toBe(5);
    expect(at(message(tag('I'), u32(1), tag('N'), u16(1), tag('b'), u32(0)))).toBe(8);
    expect(at(message(tag('I'), u32(1), tag('N'), u16(1), tag('t'), u32(0xffffffff), Buffer.alloc(20)))).toBe(9);
    expect(at(message(tag('T'), u32(0xffffffff), u8(0)))).toBe(6);
  });

  it('lets errors of the handler through unchanged', () => {
    const { decoder } = recorder();
    const problem = new Error('disk full');
    const throwing = new PgoutputDecoder({
      ...({} as ChangeHandler),
      commit: () => {
        throw problem;
      },
    });
    expect(() => throwing.decode(1n, samples.commit, 0, samples.commit.length)).toThrow(problem);
    expect(() => decoder.decode(1n, samples.commit, 0, samples.commit.length)).not.toThrow();
  });
});
