import { expect, test } from 'vitest';
import { seahash } from '../../../src/sinks/kafka/seahash.ts';

// docs.rs/seahash, "Implementation": hash(b"to be or not to be") and the tests of the crate.
test('SeaHash of the reference', () => {
  expect(seahash(Buffer.from('to be or not to be'))).toBe(1988685042348123509n);
});
