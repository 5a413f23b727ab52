import { describe, expect, it } from 'vitest';
import type { ServerAddress } from '../../../src/config.ts';
import { judge, showCheck } from '../../../src/server/check.ts';
import { limited, type UpstreamFacts, unusable } from '../../../src/server/upstream-facts.ts';

const address: ServerAddress = {
  host: 'db',
  port: 5432,
  user: 'o"wner',
  password: 'top-secret',
  database: 'shop',
  ssl: { mode: 'disable' },
};
const good: UpstreamFacts = {
  version: '17.2',
  major: 17,
  walLevel: 'logical',
  maxSlots: 10,
  usedSlots: 1,
  maxSenders: 10,
  usedSenders: 0,
  superuser: true,
  replication: false,
  createDatabase: false,
  createInDatabase: true,
  inRecovery: false,
};

describe('millrace check', () => {
  it('finds nothing missing on a good server', () => {
    expect(judge(address, good).map(({ state }) => state)).toEqual(Array(8).fill('ok'));
    expect(unusable(address, good)).toBeUndefined();
  });
  it.each<[Partial<UpstreamFacts>, string]>([
    [{ major: 14, version: '14.1' }, 'missing  version: PostgreSQL 14.1: Millrace needs PostgreSQL 15 or later'],
    [
      { walLevel: 'replica' },
      'note     wal_level: replica: stream tables over its tables are kept by triggers, and it cannot be an origin; run ALTER SYSTEM SET wal_level = logical; and restart the server',
    ],
    [{ usedSlots: 10 }, 'missing  max_replication_slots: 10, 0 free: drop a slot'],
    [{ usedSenders: 12 }, 'missing  max_wal_senders: 10, 0 free: run ALTER SYSTEM'],
    [{ createInDatabase: false }, 'run GRANT CREATE ON DATABASE "shop" TO "o""wner";'],
    [{ superuser: false }, 'run ALTER ROLE "o""wner" REPLICATION;'],
    [{ superuser: false, replication: true }, 'note     CREATEDB: no'],
    [{ inRecovery: true }, 'missing  primary: no, a standby'],
    [{ major: 19 }, 'note     version: Millrace is tested with PostgreSQL 15 to 18'],
  ])('%j', (change, expected) => {
    expect(showCheck(judge(address, { ...good, ...change }))).toContain(expected);
  });
  it('names what keeps Millrace from starting, without the password', () => {
    expect(unusable(address, { ...good, walLevel: 'replica' })).toBeUndefined();
    expect(limited(address, { ...good, walLevel: 'replica' })).toContain('Run ALTER SYSTEM SET wal_level = logical; there');
    expect(limited(address, good)).toBeUndefined();
    expect(unusable(address, { ...good, major: 14, version: '14.1' })).toContain('needs 15 or later');
    expect(unusable(address, { ...good, inRecovery: true })).toContain('standby');
  });
});
