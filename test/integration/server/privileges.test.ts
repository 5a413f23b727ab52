/** PostgreSQL refuses to run as root: Millrace started by root has to find a way, wherever the data is. */
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startEmbeddedPostgres } from '../../../src/server/embedded-postgres.ts';
import { findPostgresBinaries } from '../../../src/server/postgres-binaries.ts';
import { readPostmasterFile } from '../../../src/server/postmaster-file.ts';
import { chooseRunAs } from '../../../src/server/unprivileged.ts';

let directory: string;
beforeEach(() => {
  // 0700, owned by whoever runs the tests.
  directory = mkdtempSync(join(tmpdir(), 'millrace-private-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

describe.skipIf(process.getuid?.() !== 0)('as root (needs root)', () => {
  it('runs where only root may go', async () => {
    const server = await startEmbeddedPostgres({ dataDir: join(directory, 'postgres'), sync: false });
    try {
      expect(readPostmasterFile(server.dataDir)).toEqual({ pid: server.pid, status: 'ready' });
      expect(['user-namespace', 'capabilities']).toContain(chooseRunAs('/bin/true', directory).how);
    } finally {
      await server.stop('immediate');
    }
  });

  it('runs there without user namespaces, which containers often forbid', async () => {
    const bin = join(directory, 'bin');
    mkdirSync(bin, { mode: 0o755 });
    // Everything but unshare.
    for (const name of ['setpriv', 'id', 'rm']) symlinkSync(execFileSync('which', [name], { encoding: 'utf8' }).trim(), join(bin, name));
    const path = process.env['PATH'];
    process.env['PATH'] = bin;
    try {
      expect(chooseRunAs(findPostgresBinaries().postgres, directory).how).toBe('capabilities');
      const server = await startEmbeddedPostgres({ dataDir: join(directory, 'postgres'), sync: false });
      expect(statSync(server.dataDir).uid).not.toBe(0);
      await server.stop();
    } finally {
      process.env['PATH'] = path;
    }
  });

  it('keeps working when the data moves between places that others may enter and may not', async () => {
    const dataDir = join(directory, 'deep', 'postgres');
    mkdirSync(join(directory, 'deep'), { mode: 0o755 });
    for (const mode of [0o755, 0o700, 0o755]) {
      chmodSync(directory, mode);
      const server = await startEmbeddedPostgres({ dataDir, sync: false });
      // The clone, too, may be where only root can go.
      const { owner } = chooseRunAs(findPostgresBinaries().postgres, join(directory, 'deep'));
      expect(statSync(dataDir).uid).toBe(owner?.uid);
      await server.stop();
    }
  });
});

describe('the data directory', () => {
  it('is taken over when postmaster.pid names a process that is no PostgreSQL', async () => {
    const dataDir = join(directory, 'postgres');
    const first = await startEmbeddedPostgres({ dataDir, sync: false });
    await first.stop();
    // As after a crash of the machine, when the number went to another program.
    writeFileSync(join(dataDir, 'postmaster.pid'), `${process.ppid}\n${dataDir}\n1\n${first.port}\n\n127.0.0.1\n\nready\n`);
    const second = await startEmbeddedPostgres({ dataDir, sync: false });
    expect(second.port).toBe(first.port);
    await second.stop();
  });

  it('is not taken from a server that Millrace did not start', async () => {
    const dataDir = join(directory, 'postgres');
    const server = await startEmbeddedPostgres({ dataDir, sync: false });
    try {
      writeFileSync(join(dataDir, 'postmaster.opts'), 'postgres -D somewhere\n');
      await expect(startEmbeddedPostgres({ dataDir, sync: false })).rejects.toThrow(
        `data directory ${dataDir} is in use by a PostgreSQL server that Millrace did not start (PID ${server.pid})`,
      );
    } finally {
      await server.stop('immediate');
    }
  });

  it('may have a path too long for a socket', async () => {
    const server = await startEmbeddedPostgres({ dataDir: join(directory, 'x'.repeat(120), 'postgres'), sync: false });
    expect(server.socketDir?.length).toBeLessThan(90);
    expect(statSync(server.socketDir ?? '').mode & 0o777).toBe(0o700);
    await server.stop();
    await expect.poll(() => existsSync(server.socketDir ?? '')).toBe(false);
  });
});
