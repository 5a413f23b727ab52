import { Parser } from 'pg-protocol/dist/parser.js';
import { describe, expect, it } from 'vitest';
import { millraceError } from '../../../src/errors.ts';
import { createLogger } from '../../../src/log.ts';
import { UpstreamError } from '../../../src/statements/caller-session.ts';
import { copyInRelay } from '../../../src/wire/copy-in-relay.ts';
import { bindParts, dataRowValues, errorFields, executeParts, parseParts, rowDescriptionFields } from '../../../src/wire/decode.ts';
import {
  bind,
  bindAs,
  commandComplete,
  dataRow,
  errorResponse,
  execute,
  message,
  noticeResponse,
  parse,
  readyForQuery,
  rowDescription,
  sync,
} from '../../../src/wire/encode.ts';
import { charactersBefore, failureResponse, OrdinaryPartError } from '../../../src/wire/failure.ts';
import { describeFields, encodeRows } from '../../../src/wire/result-rows.ts';
import { asWarning } from '../../../src/wire/tasks.ts';

const log = createLogger('test');

/** What node-postgres reads out of the bytes. */
function read(bytes: Buffer): Record<string, unknown>[] {
  const found: Record<string, unknown>[] = [];
  new Parser().parse(bytes, (one) => found.push(one as unknown as Record<string, unknown>));
  return found;
}

describe('messages', () => {
  it('are what a client understands', () => {
    const error = millraceError('duplicate_object', { kind: 'source', name: 'ä' }, { position: 3 });
    expect(read(errorResponse(error.fields, 'utf8'))).toMatchObject([
      { name: 'error', severity: 'ERROR', code: '42710', message: 'source "ä" already exists', position: '3' },
    ]);
    expect(read(noticeResponse({ severity: 'NOTICE', code: '00000', message: 'm', hint: 'h' }, 'utf8'))).toMatchObject([
      { name: 'notice', message: 'm', hint: 'h' },
    ]);
    const fields = [
      { name: 'a', typeOid: 25, typeModifier: -1 },
      { name: 'b', typeOid: 20, typeModifier: -1 },
    ];
    const bytes = Buffer.concat([
      describeFields(fields, [0, 1], 'utf8'),
      ...encodeRows(
        {
          fields,
          rows: [
            ['ü', '-2'],
            [null, null],
          ],
        },
        [0, 1],
        'utf8',
      ),
      commandComplete('SHOW', 'utf8'),
      readyForQuery(0x54),
    ]);
    expect(read(bytes)).toMatchObject([
      {
        name: 'rowDescription',
        fields: [
          { name: 'a', dataTypeID: 25, format: 'text' },
          { name: 'b', dataTypeSize: 8, format: 'binary' },
        ],
      },
      { name: 'dataRow', fieldCount: 2 },
      { name: 'dataRow', fields: [null, null] },
      { name: 'commandComplete', text: 'SHOW' },
      { name: 'readyForQuery', status: 'T' },
    ]);
  });

  it('are read back as they were written', () => {
    expect(dataRowValues(dataRow([Buffer.from('x'), null, Buffer.from('')]), 'utf8')).toEqual(['x', null, '']);
    const column = { name: 'n', typeOid: 3_000_000_000, typeLength: -1, typeModifier: 7, format: 0 };
    expect(rowDescriptionFields(rowDescription([column], 'utf8'), 'utf8')).toEqual([
      { name: 'n', typeOid: 3_000_000_000, typeModifier: 7 },
    ]);
    const parameters = Buffer.from([0, 0, 0, 2, 0, 0, 0, 1, 0x61, 255, 255, 255, 255]);
    expect(bindParts(bind('p', 's', ['a', null], 'utf8'))).toEqual({ portal: 'p', statement: 's', parameters, formats: [] });
    expect(bindAs('p', 's', parameters, 'utf8')).toEqual(bind('p', 's', ['a', null], 'utf8'));
    expect(executeParts(execute('p', 'utf8'))).toEqual({ portal: 'p', limit: 0 });
    expect(parseParts(parse('n', 'SELECT ä', 'utf8', [23]), 'utf8')).toEqual({ name: Buffer.from('n'), text: 'SELECT ä' });
    expect(() => bindParts(message(0x42, [Buffer.from([0, 0, 0])]))).toThrow(RangeError);
    expect(() => dataRowValues(message(0x44, [Buffer.from([0, 1, 0, 0, 0, 9, 1])]), 'utf8')).toThrow(RangeError);
  });

  it('cannot be broken by a NUL in a text', () => {
    expect(errorFields(errorResponse({ severity: 'ERROR', code: 'XX000', message: 'a\0Mb' }, 'utf8'), 'utf8')['M']).toBe('aMb');
  });

  it('keep every byte of another encoding', () => {
    const fields = errorFields(errorResponse({ severity: 'ERROR', code: 'XX000', message: '\xe4\xff' }, 'latin1'), 'latin1');
    expect(fields['M']).toBe('\xe4\xff');
  });
});

describe('failures', () => {
  const upstream = { S: 'FEHLER', V: 'ERROR', C: '22012', M: 'm', P: '3', W: 'c', R: 'int4div', t: 'tab', D: 'd' };
  it('speak of the client’s text only', () => {
    const shown = (error: unknown): Record<string, string> => errorFields(failureResponse(error, 10, 'utf8', log), 'utf8');
    expect(shown(new UpstreamError(upstream))).toEqual({ S: 'FEHLER', V: 'ERROR', C: '22012', M: 'm', t: 'tab', D: 'd' });
    expect(shown(new OrdinaryPartError(upstream))).toEqual({ ...upstream, P: '13' });
    expect(shown(millraceError('syntax_error', { message: 'x' }, { position: 1 }))['P']).toBe('11');
    expect(charactersBefore('ä😀b', 3)).toBe(2);
  });
  it('become warnings after the commit', () => {
    const warning = asWarning(failureResponse(new UpstreamError(upstream), 0, 'utf8', log));
    expect(read(warning)).toMatchObject([{ name: 'notice', severity: 'WARNING', code: '22012', detail: 'd' }]);
  });
});

describe('COPY data for one part of a text', () => {
  it.each([
    ['done', message(0x63, [])],
    ['failed', message(0x66, [Buffer.from('no\0')])],
  ])('ends: %s', (_, end) => {
    const data = [message(0x64, [Buffer.from('1\n')]), message(0x64, [Buffer.alloc(40)])];
    const rest = Buffer.from('the next');
    const bytes = Buffer.concat([data[0] ?? rest, sync, data[1] ?? rest, end, rest]);
    for (let step = 1; step <= bytes.length; step++) {
      const sent: Buffer[] = [];
      const relay = copyInRelay((piece) => sent.push(Buffer.from(piece)));
      let left: Buffer | null = null;
      let at = 0;
      for (; at < bytes.length && left === null; at += step) left = relay(bytes.subarray(at, at + step));
      const whole = Buffer.concat(sent);
      expect(whole.subarray(0, 52)).toEqual(Buffer.concat(data));
      expect(whole.subarray(52, 52 + end.length)).toEqual(end);
      expect(Buffer.concat([left ?? rest, bytes.subarray(at)]).toString()).toBe('the next');
    }
  });
  it('let the upstream see what does not belong among them', () => {
    const sent: Buffer[] = [];
    const relay = copyInRelay((piece) => sent.push(Buffer.from(piece)));
    const bytes = Buffer.concat([message(0x64, [Buffer.from('1\n')]), message(0x51, [Buffer.from('SELECT 1\0')])]);
    expect(relay(bytes)).toBeNull();
    expect(Buffer.concat(sent)).toEqual(bytes);
  });
});
