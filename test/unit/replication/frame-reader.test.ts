import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FrameReader } from '../../../src/replication/frame-reader.ts';

const frame = (body: Buffer): Buffer => {
  const head = Buffer.alloc(5);
  head[0] = 0x64;
  head.writeInt32BE(4 + body.length, 1);
  return Buffer.concat([head, body]);
};

/** Reads whole frames; pauses after each one of which `pauseAfter` says so. */
function collect(pauseAfter: (index: number) => boolean = () => false): { bodies: string[]; reader: FrameReader } {
  const bodies: string[] = [];
  const reader: FrameReader = new FrameReader((buffer, start, end) => {
    let at = start;
    while (end - at >= 5 && !reader.paused) {
      const size = 1 + buffer.readInt32BE(at + 1);
      if (end - at < size) break;
      bodies.push(buffer.toString('latin1', at + 5, at + size));
      at += size;
      if (pauseAfter(bodies.length - 1)) reader.pause();
    }
    return at;
  });
  return { bodies, reader };
}

describe('FrameReader', () => {
  it('gives each frame once, however the stream is cut and paused', () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ maxLength: 40, unit: 'binary-ascii' }), { maxLength: 12 }),
        fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 20 }),
        fc.integer({ min: 1, max: 5 }),
        (texts, sizes, every) => {
          const stream = Buffer.concat(texts.map((text) => frame(Buffer.from(text, 'latin1'))));
          const { bodies, reader } = collect((index) => index % every === 0);
          let at = 0;
          for (let i = 0; at < stream.length; i++) {
            const size = sizes[i % sizes.length] ?? 1;
            reader.push(stream.subarray(at, at + size));
            at += size;
            if (i % 3 === 0) reader.resume();
          }
          while (reader.paused) reader.resume();
          expect(bodies).toEqual(texts);
        },
      ),
    );
  });

  it('gives nothing while paused', () => {
    const { bodies, reader } = collect();
    reader.pause();
    reader.push(frame(Buffer.from('a')));
    expect(bodies).toEqual([]);
    reader.resume();
    expect(bodies).toEqual(['a']);
  });

  it('does not copy again and again while a large frame arrives', () => {
    const { bodies, reader } = collect();
    const large = frame(Buffer.alloc(64 * 1024 * 1024, 0x61));
    const begin = performance.now();
    for (let at = 0; at < large.length; at += 16 * 1024) reader.push(large.subarray(at, at + 16 * 1024));
    expect(bodies[0]).toHaveLength(64 * 1024 * 1024);
    // Quadratic copying would move 128 GB.
    expect(performance.now() - begin).toBeLessThan(5_000);
  });
});
