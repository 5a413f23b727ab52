import { describe, expect, it } from 'vitest';
import { AuthenticationGuard, withoutChannelBinding } from '../../../src/wire/authentication.ts';
import { message } from '../../../src/wire/encode.ts';
import { readStartupPacket } from '../../../src/wire/startup.ts';

function packet(code: number, body: string): Buffer {
  const bytes = Buffer.alloc(8 + Buffer.byteLength(body));
  bytes.writeInt32BE(bytes.length, 0);
  bytes.writeInt32BE(code, 4);
  bytes.write(body, 8);
  return bytes;
}

describe('the startup packet', () => {
  it('is read once it is complete', () => {
    const bytes = packet(196610, 'user\0ann\0database\0shop\0options\0-c a=b\0\0');
    for (let cut = 0; cut < bytes.length; cut++) expect(readStartupPacket(bytes.subarray(0, cut)).kind).toBe('incomplete');
    expect(readStartupPacket(bytes)).toEqual({ kind: 'startup', length: bytes.length, user: 'ann', database: 'shop', replication: false });
    expect(readStartupPacket(packet(196608, 'user\0ann\0replication\0database\0\0'))).toMatchObject({ database: 'ann', replication: true });
    expect(readStartupPacket(packet(196608, 'user\0ann\0replication\0off\0\0'))).toMatchObject({ replication: false });
  });

  it('may be one of the special requests, the cancel key of any length', () => {
    expect(readStartupPacket(packet(80877103, ''))).toEqual({ kind: 'ssl', length: 8 });
    expect(readStartupPacket(packet(80877104, ''))).toEqual({ kind: 'gss', length: 8 });
    for (const length of [8, 36, 260])
      expect(readStartupPacket(packet(80877102, 'k'.repeat(length)))).toEqual({ kind: 'cancel', length: 8 + length });
  });

  it('has a limit', () => {
    expect(readStartupPacket(Buffer.from([0, 0, 0x27, 0x10])).kind).toBe('incomplete');
    for (const head of [
      [0, 0, 0x27, 0x11],
      [0, 0, 0, 7],
      [0xff, 0xff, 0xff, 0xff],
    ]) {
      expect(readStartupPacket(Buffer.from(head)).kind).toBe('invalid');
    }
    expect(readStartupPacket(Buffer.from([0x16])).kind).toBe('direct-tls');
  });
});

describe('authentication', () => {
  it('offers no channel binding to a client whose channel is another one', () => {
    const sasl = (names: string): Buffer => message(0x52, [Buffer.from([0, 0, 0, 10]), Buffer.from(names, 'latin1')]);
    expect(withoutChannelBinding(sasl('SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0'))).toEqual(sasl('SCRAM-SHA-256\0\0'));
    expect(withoutChannelBinding(sasl('SCRAM-SHA-256\0\0'))).toEqual(sasl('SCRAM-SHA-256\0\0'));
  });

  it('allows answers only, however they are cut', () => {
    const good = Buffer.concat([message(0x70, [Buffer.alloc(300)]), message(0x70, []), message(0x58, [])]);
    const bad = Buffer.concat([message(0x70, [Buffer.alloc(9)]), message(0x51, [Buffer.alloc(9)])]);
    const long = Buffer.from([0x70, 0, 1, 0, 0]);
    for (const [bytes, allowed] of [
      [good, true],
      [bad, false],
      [long, false],
    ] as const) {
      for (let step = 1; step <= bytes.length; step++) {
        const guard = new AuthenticationGuard();
        let all = true;
        for (let at = 0; at < bytes.length && all; at += step) all = guard.allows(bytes.subarray(at, at + step));
        expect(all).toBe(allowed);
      }
    }
  });
});
