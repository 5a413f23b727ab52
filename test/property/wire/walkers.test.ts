/** Wherever TCP cuts the streams, the same happens; and the ledger agrees with a server that keeps the rules. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  bind,
  close,
  copyDone,
  describe as describeMessage,
  errorResponse,
  execute,
  flush,
  message,
  parse,
  query,
  readyForQuery,
  sync,
} from '../../../src/wire/encode.ts';
import { Ledger } from '../../../src/wire/ledger.ts';
import { LocalNames } from '../../../src/wire/local-names.ts';
import { Disposition, ReplyWalker } from '../../../src/wire/replies.ts';
import { RequestWalker, Stop } from '../../../src/wire/requests.ts';
import { Request } from '../../../src/wire/tags.ts';

const gate = (text: Uint8Array, start: number, end: number): boolean => Buffer.from(text.subarray(start, end)).includes('EXT');

/** Feeds bytes as a session does, and notes what is forwarded and what is taken over. */
function feed(chunks: readonly Buffer[], local: readonly string[]): { log: string[]; ledger: Ledger } {
  const ledger = new Ledger();
  const names = new LocalNames();
  for (const name of local) {
    names.statements.set(name, {
      statement: { type: 'drop_schema', ifExists: false, names: [], cascade: false },
      text: '',
      fields: null,
      upstream: null,
    });
  }
  const walker = new RequestWalker(ledger, gate, names);
  const log: string[] = [];
  let forwarded: Buffer[] = [];
  let pieces: Buffer = Buffer.alloc(0);
  let need = 0;
  const settle = (): void => {
    if (forwarded.length > 0) log.push(`forward ${Buffer.concat(forwarded).toString('hex')}`);
    forwarded = [];
  };
  for (const chunk of chunks) {
    pieces = Buffer.concat([pieces, chunk]);
    while (pieces.length > 0 && pieces.length >= need) {
      need = 0;
      const to = walker.walk(pieces);
      if (to > 0) forwarded.push(pieces.subarray(0, to));
      if (walker.stop === Stop.takeOver) {
        settle();
        const taken = pieces.subarray(to, walker.messageEnd);
        log.push(`take ${taken.toString('hex')}`);
        walker.forwarded(taken[0] ?? 0);
        pieces = pieces.subarray(walker.messageEnd);
      } else {
        pieces = pieces.subarray(to);
        if (walker.stop === Stop.incomplete) {
          need = walker.need;
          expect(need).toBeGreaterThan(pieces.length);
        }
      }
    }
  }
  settle();
  return { log, ledger };
}

const name = fc.constantFrom('', 'a', 'local');
const sql = fc.oneof(
  fc.constantFrom('SELECT 1', 'EXT', '', 'BEGIN; EXT'),
  fc.nat(300).map((length) => 'x'.repeat(length)),
);
const request = fc.oneof(
  sql.map((text) => query(text, 'utf8')),
  fc.tuple(name, sql).map(([n, text]) => parse(n, text, 'utf8', [23])),
  fc.tuple(name, name).map(([p, s]) => bind(p, s, ['value', null], 'utf8')),
  name.map((n) => describeMessage('S', n, 'utf8')),
  name.map((n) => execute(n, 'utf8')),
  name.map((n) => close('S', n, 'utf8')),
  fc.constantFrom(sync, flush, copyDone, message(Request.functionCall, [Buffer.alloc(8)]), message(Request.copyData, [Buffer.alloc(50)])),
);

function cut(bytes: Buffer, lengths: readonly number[]): Buffer[] {
  const chunks: Buffer[] = [];
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const length = lengths[i % Math.max(1, lengths.length)] ?? bytes.length;
    chunks.push(bytes.subarray(at, at + length));
    at += length;
  }
  return chunks;
}

const lengths = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 10 });

describe('requests', () => {
  it('are taken over or forwarded alike, however they are cut', () => {
    fc.assert(
      fc.property(
        fc.array(request, { maxLength: 20 }),
        lengths,
        fc.constantFrom([], ['local'], ['', 'local']),
        (messages, sizes, local) => {
          const bytes = Buffer.concat(messages);
          const whole = feed([bytes], local);
          const pieces = feed(cut(bytes, sizes), local);
          expect(pieces.log).toEqual(whole.log);
          expect({ ...pieces.ledger }).toEqual({ ...whole.ledger });
          expect(whole.log.map((line) => line.replace(/^\w+ /, '')).join('')).toBe(bytes.toString('hex'));
        },
      ),
      { numRuns: 300 },
    );
  });

  it('of great length are decided by their beginning', () => {
    const ordinary = query(`${'x'.repeat(2_000_000)} EXT`, 'utf8');
    const extended = query(`EXT ${'x'.repeat(2_000_000)}`, 'utf8');
    const middling = query(`${'x'.repeat(900_000)} EXT`, 'utf8');
    const kinds = (bytes: Buffer): string[] => feed(cut(bytes, [30_000]), []).log.map((line) => line.slice(0, 4));
    expect(kinds(ordinary)).toEqual(['forw']);
    expect(kinds(extended)).toEqual(['take']);
    expect(kinds(middling)).toEqual(['take']);
  });
});

describe('replies', () => {
  const reply = fc.oneof(
    fc.nat(100).map((length) => message(0x44, [Buffer.alloc(length, 7)])),
    fc.constantFrom(readyForQuery(0x49), readyForQuery(0x54), message(0x43, [Buffer.from('SELECT 1\0')])),
    fc.constant(errorResponse({ severity: 'ERROR', code: '22012', message: 'm' }, 'utf8')),
    fc.constant(message(0x53, [Buffer.from('client_encoding\0UTF8\0')])),
    fc.constant(message(0x4e, [Buffer.from('Mx\0\0')])),
  );

  function run(chunks: readonly Buffer[], withSink: boolean): { out: string; collected: string[]; ledger: Ledger } {
    const ledger = new Ledger();
    const out: Buffer[] = [];
    const collected: string[] = [];
    const walker = new ReplyWalker(ledger, {
      forward: (bytes) => out.push(Buffer.from(bytes)),
      parameterStatus: (bytes) => collected.push(bytes.toString('hex')),
      readyForQuery: () => undefined,
    });
    if (withSink) {
      walker.sink = {
        disposition: (tag) => (tag === 0x44 ? Disposition.drop : tag === 0x43 || tag === 0x5a ? Disposition.collect : Disposition.pass),
        message: (_, bytes) => {
          collected.push(bytes.toString('hex'));
          // A third ReadyForQuery ends the sink's time.
          if (collected.length === 3) walker.sink = null;
        },
      };
    }
    // One memory for every chunk, as a socket may do.
    const memory = Buffer.alloc(70_000);
    for (const chunk of chunks) walker.push(memory.subarray(0, chunk.copy(memory)));
    return { out: Buffer.concat(out).toString('hex'), collected, ledger };
  }

  it('come out alike, however they are cut', () => {
    fc.assert(
      fc.property(fc.array(reply, { maxLength: 20 }), lengths, fc.boolean(), (messages, sizes, withSink) => {
        const bytes = Buffer.concat(messages);
        const whole = run([bytes], withSink);
        const pieces = run(cut(bytes, sizes), withSink);
        expect(pieces).toEqual(whole);
        if (!withSink) expect(whole.out).toBe(bytes.toString('hex'));
      }),
      { numRuns: 300 },
    );
  });
});

describe('the ledger', () => {
  /** A server in its own words: what it answers to each message, with `fails` saying which statements fail. */
  class Server {
    skipping = false;
    pending: Buffer[] = [];
    readonly ledger: Ledger;
    constructor(ledger: Ledger) {
      this.ledger = ledger;
    }
    receive(kind: string, fails: boolean): void {
      if (kind === 'S') {
        this.skipping = false;
        this.pending.push(readyForQuery(0x49));
      } else if (this.skipping) return;
      else if (kind === 'Q') {
        if (fails) this.pending.push(errorResponse({ severity: 'ERROR', code: 'XX000', message: 'm' }, 'utf8'));
        this.pending.push(readyForQuery(0x49));
      } else if (fails) {
        this.skipping = true;
        this.pending.push(errorResponse({ severity: 'ERROR', code: 'XX000', message: 'm' }, 'utf8'));
      }
    }
  }

  it('is quiet only when every answer is there, and knows when the server skips', () => {
    // A client that ends each batch with Sync, as all drivers do; any amount is under way at once.
    const step = fc.tuple(fc.constantFrom('Q', 'X', 'XX', 'S'), fc.boolean(), fc.nat(4));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const ledger = new Ledger();
        const server = new Server(ledger);
        const walker = new ReplyWalker(ledger, {
          forward: () => undefined,
          parameterStatus: () => undefined,
          readyForQuery: () => undefined,
        });
        let open = false;
        for (const [kind, fails, answers] of steps) {
          if (kind === 'Q' && open) continue;
          for (const one of kind) {
            if (one === 'Q') ledger.query();
            else if (one === 'S') ledger.sync();
            else ledger.batchOpen = true;
            server.receive(one, fails);
          }
          open = kind.startsWith('X') || (open && kind !== 'S');
          for (const bytes of server.pending.splice(0, answers)) walker.push(bytes);
          if (ledger.quiet) expect(server.pending).toHaveLength(0);
          if (ledger.skipping) expect(server.skipping).toBe(true);
        }
        for (const bytes of server.pending.splice(0)) walker.push(bytes);
        expect(ledger.quiet).toBe(!open);
        if (open) expect(ledger.skipping).toBe(server.skipping);
      }),
      { numRuns: 500 },
    );
  });
});
