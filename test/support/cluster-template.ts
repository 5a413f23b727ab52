/**
 * One initdb per PostgreSQL version and machine: clusters for tests are copies of it.
 * Invariant: every copy has a system identifier of its own, as two real servers have.
 */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { clusterMajor, createCluster } from '../../src/server/cluster-files.ts';
import { findPostgresBinaries } from '../../src/server/postgres-binaries.ts';
import { chooseRunAs } from '../../src/server/unprivileged.ts';

/** Where test clusters live; entered, but not listed, by the user that runs the servers. */
export function testRoot(): string {
  const root = join(tmpdir(), `millrace-test-${process.getuid?.() ?? 0}`);
  mkdirSync(root, { recursive: true, mode: 0o711 });
  return root;
}

/** Makes `dataDir` a new, never started cluster. */
export async function copyCluster(packageName: string, dataDir: string): Promise<void> {
  const template = await ensureTemplate(packageName);
  execFileSync('cp', ['-a', template, dataDir]);
  personalise(dataDir);
}

async function ensureTemplate(packageName: string): Promise<string> {
  const binaries = findPostgresBinaries(packageName);
  const runAs = chooseRunAs(binaries.postgres, testRoot());
  const template = join(testRoot(), `template-${binaries.version}-${runAs.how}`);
  if (clusterMajor(template) !== undefined) return template;
  const own = join(testRoot(), `draft-${randomBytes(6).toString('hex')}`);
  await createCluster(binaries, own, runAs, { sync: false });
  try {
    renameSync(own, template);
  } catch (error) {
    // Another test process was first.
    rmSync(own, { recursive: true, force: true });
    if (!existsSync(template)) throw error;
  }
  return template;
}

/** Gives a copied cluster a new system identifier: in pg_control (which has a checksum) and in the header of each WAL segment. */
function personalise(dataDir: string): void {
  const identifier = randomBytes(8);
  identifier.writeUInt8(identifier.readUInt8(7) & 0x7f, 7);
  const control = join(dataDir, 'global', 'pg_control');
  const bytes = readFileSync(control);
  const checksumAt = findChecksum(bytes);
  identifier.copy(bytes, 0);
  bytes.writeUInt32LE(crc32c(bytes, checksumAt), checksumAt);
  writeFileSync(control, bytes);
  for (const name of readdirSync(join(dataDir, 'pg_wal'))) {
    if (!/^[0-9A-F]{24}$/.test(name)) continue;
    const path = join(dataDir, 'pg_wal', name);
    const segment = readFileSync(path);
    identifier.copy(segment, 24);
    writeFileSync(path, segment);
  }
}

/** The checksum follows the last field, and where that ends differs by version: it is where the checksum fits. */
function findChecksum(control: Buffer): number {
  for (let at = 200; at < 512; at += 4) if (control.readUInt32LE(at) === crc32c(control, at)) return at;
  throw new Error('pg_control has no checksum where one is expected');
}

function crc32c(bytes: Buffer, length: number): number {
  let crc = 0xffffffff;
  for (let i = 0; i < length; i++) {
    crc ^= bytes.readUInt8(i);
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}
