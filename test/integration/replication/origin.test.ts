import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ServerAddress } from '../../../src/config.ts';
import { connectionProblem, openOrigin } from '../../../src/replication/origin.ts';
import { checkOrigin } from '../../../src/replication/origin-check.ts';
import { describeTable, describeTables, listPublished, type OriginTable } from '../../../src/replication/origin-tables.ts';
import { createSlot, dropSlot } from '../../../src/replication/slots.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';

const shapes = `
  CREATE SCHEMA other;
  CREATE TYPE other.mood AS ENUM ('sad', 'ok');
  CREATE DOMAIN other.price AS numeric(10, 2);
  CREATE DOMAIN other.net AS other.price CHECK (VALUE >= 0);
  CREATE DOMAIN other.feeling AS other.mood;
  CREATE TABLE public.items (
    gone int,
    id bigint GENERATED ALWAYS AS IDENTITY,
    name varchar(20) COLLATE "C" NOT NULL DEFAULT 'x',
    "Odd ""name" other.mood[],
    price other.net,
    feeling other.feeling,
    total numeric(12, 3) GENERATED ALWAYS AS (1.5) STORED,
    kind int NOT NULL,
    PRIMARY KEY (kind, id));
  ALTER TABLE public.items DROP COLUMN gone;
  CREATE TABLE other.items (a int);
  CREATE TABLE other.indexed (a int, b int NOT NULL, c int NOT NULL);
  CREATE UNIQUE INDEX indexed_key ON other.indexed (c, b);
  ALTER TABLE other.indexed REPLICA IDENTITY USING INDEX indexed_key;
  CREATE TABLE other.whole (a int PRIMARY KEY, b int); ALTER TABLE other.whole REPLICA IDENTITY FULL;
  CREATE TABLE other.nothing (a int PRIMARY KEY); ALTER TABLE other.nothing REPLICA IDENTITY NOTHING;
  CREATE TABLE public.hidden (a int); ALTER TABLE public.hidden ENABLE ROW LEVEL SECURITY;
  CREATE TABLE public.parts (a int PRIMARY KEY) PARTITION BY RANGE (a);
  CREATE TABLE public.part1 PARTITION OF public.parts FOR VALUES FROM (0) TO (10);
  CREATE SCHEMA third; CREATE TABLE third.twice (a int); CREATE TABLE other.twice (a int);
  CREATE PUBLICATION everything FOR ALL TABLES;
  CREATE PUBLICATION partial FOR TABLE public.items (kind, id, name) WHERE (kind > 5), other.whole WITH (publish = 'insert, delete');
  CREATE PUBLICATION roots FOR TABLE public.parts WITH (publish_via_partition_root);
  CREATE ROLE plain LOGIN; CREATE ROLE replicator LOGIN REPLICATION;
  GRANT SELECT ON public.hidden TO plain; GRANT USAGE ON SCHEMA public TO plain`;

describe.each([18, 15] as PostgresMajor[])('PostgreSQL %d', (version) => {
  let server: TestPostgres;
  let client: pg.Client;

  beforeAll(async () => {
    server = await startPostgres({ version, settings: { wal_level: 'logical', max_replication_slots: '2' } });
    client = await openOrigin(server.address);
    await client.query(shapes);
  });
  afterAll(async () => {
    await client?.end();
    await server?.stop();
  });

  const described = async (schema: string, table: string, publication?: string): Promise<OriginTable> => {
    const { table: found } = await describeTable(client, { schema, table }, publication === undefined ? {} : { publication });
    if (found === undefined) throw new Error('not found');
    return found;
  };

  it('describes a table', async () => {
    const table = await described('public', 'items', 'partial');
    expect(table).toMatchObject({
      schema: 'public',
      name: 'items',
      relkind: 'r',
      isPartition: false,
      replicaIdentity: 'd',
      primaryKey: [8, 2],
      identityKey: [8, 2],
      rls: false,
      canSelect: true,
      published: true,
      publishedColumns: [2, 3, 8],
      rowFilter: '(kind > 5)',
    });
    expect(
      table.columns.map(({ attnum, name, formattedType, baseType, baseIsBuiltin }) => [
        attnum,
        name,
        formattedType,
        baseType,
        baseIsBuiltin,
      ]),
    ).toEqual([
      [2, 'id', 'bigint', 'bigint', true],
      [3, 'name', 'character varying(20)', 'character varying(20)', true],
      [4, 'Odd "name', 'other.mood[]', 'other.mood[]', false],
      [5, 'price', 'other.net', 'numeric(10,2)', true],
      [6, 'feeling', 'other.feeling', 'other.mood', false],
      [7, 'total', 'numeric(12,3)', 'numeric(12,3)', true],
      [8, 'kind', 'integer', 'integer', true],
    ]);
    const [id, name, , price, , total] = table.columns;
    expect(id).toMatchObject({
      typeOid: 20,
      typmod: -1,
      typeSchema: 'pg_catalog',
      typeName: 'int8',
      identity: 'a',
      notNull: true,
      generated: '',
    });
    expect(name).toMatchObject({ typmod: 24, hasDefault: true, notNull: true, collation: 'pg_catalog."C"' });
    expect(price).toMatchObject({ typeSchema: 'other', typeName: 'net', notNull: false, collation: null });
    expect(total).toMatchObject({ generated: 's' });
  });

  it('knows what identifies a row', async () => {
    expect(await described('other', 'indexed')).toMatchObject({ replicaIdentity: 'i', primaryKey: [], identityKey: [3, 2] });
    expect(await described('other', 'whole')).toMatchObject({ replicaIdentity: 'f', primaryKey: [1], identityKey: [1] });
    expect(await described('other', 'nothing')).toMatchObject({ replicaIdentity: 'n', primaryKey: [1], identityKey: [] });
    expect(await described('other', 'items')).toMatchObject({ replicaIdentity: 'd', primaryKey: [], identityKey: [] });
  });

  it('knows what is published', async () => {
    expect(await described('other', 'items', 'everything')).toMatchObject({ published: true, publishedColumns: [1], rowFilter: null });
    expect(await described('other', 'items', 'partial')).toMatchObject({ published: false, publishedColumns: null, rowFilter: null });
    expect(await described('other', 'items')).toMatchObject({ published: false });
    expect((await described('public', 'parts', 'roots')).published).toBe(true);
    expect(await described('public', 'part1', 'roots')).toMatchObject({ published: false, isPartition: true });
    expect((await described('public', 'parts', 'everything')).published).toBe(false);
    expect((await listPublished(client, 'partial')).map((table) => `${table.schema}.${table.name}`)).toEqual([
      'other.whole',
      'public.items',
    ]);
    expect((await listPublished(client, 'roots')).map((table) => table.name)).toEqual(['parts']);
    expect(await listPublished(client, 'missing')).toEqual([]);
  });

  it('finds tables by bare name', async () => {
    expect((await describeTable(client, { table: 'items' })).table?.schema).toBe('public');
    expect((await describeTable(client, { table: 'whole' })).table?.schema).toBe('other');
    expect(await describeTable(client, { table: 'twice' })).toEqual({ table: undefined, ambiguous: ['other', 'third'] });
    expect(await describeTable(client, { table: 'pg_class' })).toEqual({ table: undefined, ambiguous: [] });
    expect(await describeTables(client, [1])).toEqual(new Map());
  });

  it('sees rights and row security as the connected role has them', async () => {
    const plain = await openOrigin({ ...server.address, user: 'plain' });
    expect((await describeTable(plain, { table: 'hidden' })).table).toMatchObject({ rls: true, canSelect: true });
    expect((await describeTable(plain, { schema: 'public', table: 'items' })).table).toMatchObject({ rls: false, canSelect: false });
    const { facts, findings } = await checkOrigin(plain, { publication: 'missing' });
    expect(facts).toMatchObject({ role: 'plain', mayReplicate: false, superuser: false, bypassesRowSecurity: false });
    expect(findings).toEqual([
      { kind: 'replication_right', role: 'plain' },
      { kind: 'publication_missing', publication: 'missing' },
    ]);
    await plain.end();
  });

  it('finds nothing wrong where nothing is', async () => {
    const { facts, findings } = await checkOrigin(client, { publication: 'everything' });
    expect(findings).toEqual([]);
    expect(facts).toMatchObject({
      walLevel: 'logical',
      mayReplicate: true,
      maxReplicationSlots: 2,
      usedReplicationSlots: 0,
      walSenderTimeoutMs: 60_000,
      database: 'postgres',
      encoding: 'UTF8',
      timeline: 1,
      inRecovery: false,
      publication: { name: 'everything', allTables: true, insert: true, update: true, delete: true, truncate: true, viaRoot: false },
    });
    expect(Math.floor(facts.versionNumber / 10_000)).toBe(version);
    expect(facts.systemIdentifier).toMatch(/^\d+$/);
    expect(facts.databaseOid).toBeGreaterThan(0);
    const replicator = await openOrigin({ ...server.address, user: 'replicator' });
    expect((await checkOrigin(replicator)).findings).toEqual([]);
    await replicator.end();
  });

  it('finds partial publications and full slots', async () => {
    expect((await checkOrigin(client, { publication: 'partial' })).findings).toEqual([
      { kind: 'publication_partial', publication: 'partial', missing: ['update', 'truncate'] },
    ]);
    await createSlot(server.address, 'one');
    await createSlot(server.address, 'two');
    expect((await checkOrigin(client)).findings).toEqual([{ kind: 'no_free_slot', max: 2, used: 2 }]);
    await expect(createSlot(server.address, 'three')).rejects.toMatchObject({ code: '53400' });
    await dropSlot(client, 'one');
    await dropSlot(client, 'two');
  });
});

describe('wal_level', () => {
  it('is found when it is not logical', async () => {
    const server = await startPostgres({ settings: { wal_level: 'replica' } });
    const client = await openOrigin(server.address);
    expect((await checkOrigin(client)).findings).toEqual([{ kind: 'wal_level', walLevel: 'replica' }]);
    await client.end();
    await server.stop();
  });
});

describe('connectionProblem', () => {
  const kind = async (address: ServerAddress, options: { connectTimeoutMs?: number; database?: string } = {}): Promise<unknown> => {
    const outcome = await openOrigin(address, options).catch((error: unknown) => connectionProblem(error));
    return outcome instanceof pg.Client ? outcome.end() : outcome.kind;
  };
  const nowhere: ServerAddress = { host: '127.0.0.1', port: 1, user: 'u', database: 'd', ssl: { mode: 'disable' } };

  it('names the cause', async () => {
    expect(await kind(nowhere)).toBe('refused');
    expect(await kind({ ...nowhere, host: '/nonexistent' })).toBe('refused');
    expect(await kind({ ...nowhere, host: 'no-such-host.invalid' })).toBe('dns');
    // TEST-NET-1: nothing answers there.
    expect(['timeout', 'refused']).toContain(await kind({ ...nowhere, host: '192.0.2.1', port: 5432 }, { connectTimeoutMs: 300 }));
    const server = await startPostgres();
    expect(await kind(server.address, { database: 'missing' })).toBe('database');
    expect(await kind({ ...server.address, user: 'missing' })).toBe('auth');
    expect(await kind({ ...server.address, ssl: { mode: 'require' } })).toBe('tls');
    await server.stop();
  });
});
