/** Replication connections through the proxy: what a standby, a backup, a subscriber and a change reader say to a server. */
import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { message, query } from '../../../src/wire/encode.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { startProxy, type TestProxy } from './proxy.ts';
import { RawClient, shown } from './raw-client.ts';

const run = promisify(execFile);
const q = (sql: string): Buffer => query(sql, 'utf8');

/** Client programs where Debian and others put them; they can speak to servers of their own version. */
const programs = (name: string, version: number): string => `/usr/lib/postgresql/${version}/bin/${name}`;

async function eventually(check: () => Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 15_000; Date.now() < end; ) {
    if (await check()) return;
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
  throw new Error('it did not come to be');
}

describe.each<PostgresMajor>([15, 18])('PostgreSQL %i', (version) => {
  let postgres: TestPostgres;
  let proxy: TestProxy;
  let direct: pg.Client;

  beforeAll(async () => {
    postgres = await startPostgres({ version });
    proxy = await startProxy(postgres.address);
    direct = new pg.Client(postgres.url);
    await direct.connect();
    await direct.query('CREATE TABLE t (a int PRIMARY KEY, b text); CREATE PUBLICATION p FOR TABLE t');
  });
  afterAll(async () => {
    await direct?.end();
    await proxy?.stop(0);
    await postgres?.stop();
  });

  it('answers commands of the replication protocol, and leaves SQL alone there', async () => {
    const answers: string[][] = [];
    for (const port of [postgres.port, proxy.port]) {
      const one = await RawClient.open(port, { replication: 'database' });
      one.write(q('IDENTIFY_SYSTEM'), q('SHOW wal_segment_size'), q('SHOW SOURCES'), q('DROP TABLE none_such'), q('SELECT 1'));
      const heard = shown(await one.until('Z', 5));
      // The position moves on.
      answers.push(heard.map((line) => line.replace(/[0-9A-F]+\/[0-9A-F]+/, 'lsn')));
      one.destroy();
    }
    expect(answers[1]).toEqual(answers[0]);
    expect(answers[1]?.[0]).toBe('T systemid|timeline|xlogpos|dbname');
  });

  it('streams changes both ways (COPY BOTH), and goes on with commands behind it', async () => {
    const one = await RawClient.open(proxy.port, { replication: 'database' });
    one.write(q('CREATE_REPLICATION_SLOT raw TEMPORARY LOGICAL pgoutput (SNAPSHOT nothing)'));
    await one.until('Z');
    one.write(q("START_REPLICATION SLOT raw LOGICAL 0/0 (proto_version '1', publication_names 'p')"));
    await one.until('W');
    await direct.query("INSERT INTO t SELECT n, 'x' FROM generate_series(1000, 1100) n");
    let inserts = 0;
    while (inserts < 101) {
      for (const { body } of await one.until('d')) if (body[0] === 0x77 && body[25] === 0x49) inserts++;
    }
    const status = Buffer.alloc(34);
    status[0] = 0x72;
    status[33] = 1;
    one.write(message(0x64, [status]), message(0x63, []));
    const end = shown(await one.until('Z'));
    expect(end).toEqual(expect.arrayContaining(['c', 'C START_REPLICATION', 'Z I']));
    one.write(q('IDENTIFY_SYSTEM'));
    expect(shown(await one.until('Z')).at(-1)).toBe('Z I');
    one.destroy();
    await direct.query('DELETE FROM t');
  });

  it('serves a subscription', async () => {
    const subscriber = await startPostgres({ version });
    const there = new pg.Client(subscriber.url);
    await there.connect();
    try {
      await direct.query("INSERT INTO t VALUES (1, 'first')");
      await there.query('CREATE TABLE t (a int PRIMARY KEY, b text)');
      await there.query(`CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=${proxy.port} user=postgres dbname=postgres' PUBLICATION p`);
      await direct.query("INSERT INTO t VALUES (2, 'second')");
      await direct.query("UPDATE t SET b = 'changed' WHERE a = 1");
      const rows = async (): Promise<string> => JSON.stringify((await there.query('SELECT * FROM t ORDER BY a')).rows);
      await eventually(async () => (await rows()) === '[{"a":1,"b":"changed"},{"a":2,"b":"second"}]');
      await there.query('ALTER SUBSCRIPTION s DISABLE');
      await there.query('DROP SUBSCRIPTION s');
      expect((await direct.query('SELECT count(*)::int AS n FROM pg_replication_slots')).rows).toEqual([{ n: 0 }]);
    } finally {
      await there.end();
      await subscriber.stop();
      await direct.query('DELETE FROM t');
    }
  });

  const recvlogical = programs('pg_recvlogical', version);
  it.skipIf(!existsSync(recvlogical))(`serves pg_recvlogical (needs ${recvlogical})`, async () => {
    const common = ['-h', '127.0.0.1', '-p', String(proxy.port), '-U', 'postgres', '-d', 'postgres', '--slot', 'received'];
    await run(recvlogical, [...common, '--create-slot', '-P', 'pgoutput']);
    const options = ['-o', 'proto_version=1', '-o', 'publication_names=p'];
    const reader = spawn(recvlogical, [...common, '--start', ...options, '-f', '-', '-F', '0'], { stdio: ['ignore', 'pipe', 'ignore'] });
    let heard = '';
    reader.stdout.on('data', (bytes: Buffer) => {
      heard += bytes.toString('latin1');
    });
    const ended = new Promise<void>((resolve) => reader.on('close', () => resolve()));
    await direct.query("INSERT INTO t VALUES (5, 'seen by the reader')");
    await eventually(async () => heard.includes('seen by the reader'));
    reader.kill('SIGINT');
    await ended;
    await eventually(async () => (await direct.query('SELECT 1 FROM pg_replication_slots WHERE active')).rows.length === 0);
    await run(recvlogical, [...common, '--drop-slot']);
  });

  const basebackup = programs('pg_basebackup', version);
  it.skipIf(!existsSync(basebackup))(`serves pg_basebackup, whose WAL is streamed beside (needs ${basebackup})`, async () => {
    const home = mkdtempSync(join(tmpdir(), 'millrace-backup-'));
    try {
      const to = join(home, 'data');
      await run(basebackup, ['-h', '127.0.0.1', '-p', String(proxy.port), '-U', 'postgres', '-D', to, '-X', 'stream', '-c', 'fast', '-R']);
      expect(readFileSync(join(to, 'PG_VERSION'), 'utf8').trim()).toBe(String(version));
      expect(readFileSync(join(to, 'postgresql.auto.conf'), 'utf8')).toContain(`port=${proxy.port}`);
      const verify = programs('pg_verifybackup', version);
      if (existsSync(verify) && existsSync(programs('pg_waldump', version))) await run(verify, [to]);
    } finally {
      rmSync(home, { recursive: true, force: true });
    }
  });

  it('streams WAL to a standby (physical replication)', async () => {
    const one = await RawClient.open(proxy.port, { replication: 'true', database: '' });
    one.write(q('IDENTIFY_SYSTEM'));
    const position = shown(await one.until('Z'))
      .find((line) => line.startsWith('D '))
      ?.split('|')[2];
    one.write(q(`START_REPLICATION PHYSICAL ${position}`));
    await one.until('W');
    await direct.query("INSERT INTO t VALUES (77, 'physical-marker')");
    let heard = '';
    while (!heard.includes('physical-marker')) heard += (await one.until('d')).map(({ body }) => body.toString('latin1')).join('');
    one.write(message(0x63, []));
    expect(shown(await one.until('Z')).at(-1)).toBe('Z I');
    one.destroy();
    await direct.query('DELETE FROM t');
  });
});
