/** Both sides of SCRAM agree, whatever the password; a wrong one never passes; recovered keys are as good as the password. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { preparedPassword } from '../../../src/wire/auth/saslprep.ts';
import { ScramClient } from '../../../src/wire/auth/scram-client.ts';
import { parseVerifier, type ScramKeys, type ScramVerifier, verifierOf, verifierText } from '../../../src/wire/auth/scram-keys.ts';
import { ScramServer } from '../../../src/wire/auth/scram-server.ts';

const password = fc.string({ unit: 'binary', minLength: 1, maxLength: 30 });
const salt = fc.uint8Array({ minLength: 1, maxLength: 40 }).map((bytes) => Buffer.from(bytes));
const iterations = fc.integer({ min: 1, max: 50 });
const nonce = fc.uint8Array({ minLength: 1, maxLength: 18 }).map((bytes) => Buffer.from(bytes).toString('base64'));

async function passes(
  secret: { password: string } | ScramKeys,
  verifier: ScramVerifier,
  nonces: readonly [string, string],
): Promise<ScramKeys | null> {
  const client = new ScramClient(secret, nonces[0]);
  const server = new ScramServer(verifier, nonces[1]);
  const outcome = server.final(await client.final(server.first(client.first())));
  if (outcome.kind === 'refused') return null;
  client.verify(outcome.message);
  return outcome.keys;
}

describe('SCRAM', () => {
  it('accepts the password and the keys recovered from it, over any salt, and nothing else', async () => {
    await fc.assert(
      fc.asyncProperty(password, password, salt, iterations, nonce, nonce, async (right, wrong, grain, rounds, a, b) => {
        const verifier = await verifierOf(right, grain, rounds);
        expect(parseVerifier(verifierText(verifier))).toEqual(verifier);
        const keys = await passes({ password: right }, verifier, [a, b]);
        expect(keys).not.toBeNull();
        if (keys !== null) expect(await passes(keys, verifier, [b, a])).toEqual(keys);
        const same = preparedPassword(right).equals(preparedPassword(wrong));
        expect((await passes({ password: wrong }, verifier, [a, b])) !== null).toBe(same);
      }),
      { numRuns: 200 },
    );
  });

  it('never accepts what is not a proof', async () => {
    const verifier = await verifierOf('right', Buffer.from('salt'), 1);
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }),
        fc.string({ unit: 'binary' }),
        fc.uint8Array({ minLength: 32, maxLength: 32 }),
        (first, final, proof) => {
          for (const [one, two] of [
            [first, final],
            [`n,,${first}`, final],
            ['n,,n=,r=c', `c=biws,r=cs,p=${Buffer.from(proof).toString('base64')}`],
            ['n,,n=,r=c', `c=biws,r=cs${final},p=${Buffer.from(proof).toString('base64')}`],
          ] as const) {
            const server = new ScramServer(verifier, 's');
            try {
              server.first(one);
              expect(server.final(two)).toEqual({ kind: 'refused' });
            } catch (error) {
              expect((error as Error).name).toBe('ScramProtocolError');
            }
          }
        },
      ),
    );
  });
});
