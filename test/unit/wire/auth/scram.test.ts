/** SCRAM-SHA-256 and md5 as pure code: the vectors of the RFCs, and what each side must not accept. */
import { describe, expect, it } from 'vitest';
import { isMd5Hash, md5Answer, md5Fits, md5Hash } from '../../../../src/wire/auth/md5.ts';
import { preparedPassword, saslprep } from '../../../../src/wire/auth/saslprep.ts';
import { ScramClient } from '../../../../src/wire/auth/scram-client.ts';
import { mockVerifier, parseVerifier, verifierOf, verifierText } from '../../../../src/wire/auth/scram-keys.ts';
import { bindingFlag, ScramServer } from '../../../../src/wire/auth/scram-server.ts';

// RFC 7677, section 3.
const vector = {
  clientFirst: 'n,,n=user,r=rOprNGfwEbeRWgbNEkqO',
  nonce: '%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0',
  serverFirst: 'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096',
  clientFinal: 'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=',
  serverFinal: 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=',
};
const verifier = await verifierOf('pencil', Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64'), 4096);
const nonce = 'bm9uY2Ugb2Ygc2VydmVy';

describe('the server', () => {
  it('agrees with RFC 7677', () => {
    const server = new ScramServer(verifier, vector.nonce);
    expect(server.first(vector.clientFirst)).toBe(vector.serverFirst);
    expect(server.final(vector.clientFinal)).toMatchObject({ kind: 'accepted', message: vector.serverFinal });
  });

  it('refuses what is doomed, in the same way', () => {
    const server = new ScramServer(verifier, vector.nonce, { doomed: true });
    expect(server.first(vector.clientFirst)).toBe(vector.serverFirst);
    expect(server.final(vector.clientFinal)).toEqual({ kind: 'refused' });
  });

  it('refuses a proof one bit off', () => {
    const server = new ScramServer(verifier, vector.nonce);
    server.first(vector.clientFirst);
    expect(server.final(vector.clientFinal.replace('p=d', 'p=e'))).toEqual({ kind: 'refused' });
  });

  it.each([
    ['', /header/],
    ['n', /header/],
    ['n,,', /"n" was expected/],
    ['p=tls-server-end-point,,n=,r=abc', /without channel binding/],
    ['x,,n=,r=abc', /Unexpected channel-binding flag "x"/],
    ['\u0000,,n=,r=abc', /Unexpected channel-binding flag "\?"/],
    ['n,a=other,n=,r=abc', /authorization identity/],
    ['n,,m=ext,n=,r=abc', /unsupported SCRAM extension/],
    ['n,,r=abc', /"n" was expected/],
    ['n,,n=user', /"r" was expected/],
    ['n,,n=,r=', /non-printable/],
    ['n,,n=,r=a\u0001', /non-printable/],
  ])('takes %j for no first message', (message, problem) => {
    const server = new ScramServer(verifier, nonce);
    let said = '';
    try {
      server.first(message);
    } catch (error) {
      said = `${(error as Error).message} ${(error as { detail?: string }).detail}`;
    }
    expect(said).toMatch(problem);
    expect(() => server.final(vector.clientFinal)).toThrow(/malformed/);
    expect(() => server.first(vector.clientFirst)).toThrow(/malformed/);
  });

  it.each([
    ['', /malformed/],
    [vector.clientFinal.replace('c=biws', 'c=eSws'), /channel-binding/],
    [vector.clientFinal.replace('c=biws', 'c=cD10bHMtc2VydmVyLWVuZC1wb2ludCws'), /channel-binding/],
    [vector.clientFinal.replace('c=biws,', ''), /malformed/],
    [vector.clientFinal.replace('NEkqO', 'NEkqP'), /invalid SCRAM response/],
    [vector.clientFinal.replace('k0,', ','), /invalid SCRAM response/],
    [vector.clientFinal.replace(/,p=.*/, ''), /malformed/],
    [vector.clientFinal.replace(/,p=.*/, ',p='), /malformed/],
    [vector.clientFinal.replace(/,p=.*/, ',p=AAAA'), /malformed/],
    [`${vector.clientFinal}!`, /malformed/],
  ])('takes %j for no final message', (message, problem) => {
    const server = new ScramServer(verifier, vector.nonce);
    server.first(vector.clientFirst);
    expect(() => server.final(message)).toThrow(problem);
    expect(() => server.final(vector.clientFinal)).toThrow(/malformed/);
  });

  it('reads the flag of the first message', () => {
    expect([bindingFlag('n,,n=,r=a'), bindingFlag('y,,n=,r=a'), bindingFlag('p=x,,n=,r=a'), bindingFlag('')]).toEqual([
      'n',
      'y',
      null,
      null,
    ]);
  });
});

describe('the client', () => {
  const conversation = async (): Promise<{ client: ScramClient; serverFirst: string; serverFinal: string; server: ScramServer }> => {
    const client = new ScramClient({ password: 'pencil' }, 'client');
    const server = new ScramServer(verifier, nonce);
    const serverFirst = server.first(client.first());
    const outcome = server.final(await client.final(serverFirst));
    return { client, server, serverFirst, serverFinal: outcome.kind === 'accepted' ? outcome.message : '' };
  };

  it('asks for no channel binding', () => {
    expect(new ScramClient({ password: 'x' }, 'abc').first()).toBe('n,,n=,r=abc');
  });

  it('believes a server that knows the verifier, and no other', async () => {
    const { client, serverFinal } = await conversation();
    expect(() => client.verify(serverFinal)).not.toThrow();
    expect(() => client.verify(vector.serverFinal)).toThrow('incorrect server signature');
    expect(() => client.verify('v=AAAA')).toThrow(/malformed/);
    expect(() => client.verify('e=other-error')).toThrow(/refused.*other-error/);
    expect(() => client.verify('')).toThrow(/malformed/);
    expect(() => new ScramClient({ password: 'pencil' }, 'n').verify(serverFinal)).toThrow('incorrect server signature');
  });

  it.each([
    ['', /malformed/],
    ['r=client,s=AAAA,i=4096', /nonce/],
    ['r=somebody,s=AAAA,i=4096', /nonce/],
    ['r=clientx,s=A,i=4096', /malformed/],
    ['r=clientx,s=AAAA,i=0', /malformed/],
    ['r=clientx,s=AAAA,i=4000000000', /iterations/],
    ['r=clientx,i=4096,s=AAAA', /malformed/],
  ])('takes %j for no answer', async (message, problem) => {
    await expect(new ScramClient({ password: 'pencil' }, 'client').final(message)).rejects.toThrow(problem);
  });
});

describe('a verifier', () => {
  const text =
    'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=';
  it('is written and read as Postgres does', () => {
    expect(verifierText(verifier)).toBe(text);
    expect(parseVerifier(text)).toEqual(verifier);
  });
  it.each([
    '',
    'pencil',
    'SCRAM-SHA-256$',
    text.replace('4096', '0'),
    text.replace('4096', '-1'),
    text.slice(0, -4),
    `${text}=`,
    text.replace('$W', '$!'),
  ])('is not %j', (other) => expect(parseVerifier(other)).toBeNull());
  it('is mocked always the same for a role, and differently for each role and key', () => {
    const key = Buffer.alloc(32, 1);
    expect(mockVerifier('a', key)).toEqual(mockVerifier('a', key));
    expect(mockVerifier('a', key).salt).not.toEqual(mockVerifier('b', key).salt);
    expect(mockVerifier('a', key).salt).not.toEqual(mockVerifier('a', Buffer.alloc(32, 2)).salt);
    expect(mockVerifier('a', key).salt).toHaveLength(16);
  });
});

describe('SASLprep', () => {
  it.each([
    // RFC 4013, section 3.
    ['I\u00adX', 'IX'],
    ['user', 'user'],
    ['\u00aa', 'a'],
    ['\u2168', 'IX'],
    ['\u0007', null],
    ['\u06271', null],
    ['\u0627\u0628', '\u0627\u0628'],
    ['\u0627a\u0628', null],
    ['a\u00a0b', 'a b'],
    ['\u00ad', null],
    ['\u0221', null],
    ['\ue000', null],
  ])('of %j is %j', (text, prepared) => expect(saslprep(text)).toBe(prepared));
  it('leaves alone what it cannot prepare', () => {
    expect(preparedPassword('\u06271')).toEqual(Buffer.from('\u06271'));
    expect(preparedPassword(Buffer.from([0xff, 0x61]))).toEqual(Buffer.from([0xff, 0x61]));
    expect(preparedPassword('a\u0007')).toEqual(Buffer.from('a\u0007'));
    expect(preparedPassword('p\u00e4\u00adss')).toEqual(Buffer.from('p\u00e4ss'));
  });
});

describe('md5', () => {
  it('agrees with itself, and with Postgres about what is stored', () => {
    const hash = md5Hash('joe', 'secret');
    expect(hash).toBe('md5c59ec932d911ffdf487595b5a2adf973');
    expect(isMd5Hash(hash)).toBe(true);
    expect(isMd5Hash('md5secret')).toBe(false);
    const challenge = Buffer.from([1, 2, 3, 4]);
    expect(md5Fits(hash, challenge, Buffer.from(md5Answer(hash, challenge)))).toBe(true);
    expect(md5Fits(hash, Buffer.from([1, 2, 3, 5]), Buffer.from(md5Answer(hash, challenge)))).toBe(false);
    expect(md5Fits(hash, challenge, Buffer.from('md5'))).toBe(false);
  });
});
