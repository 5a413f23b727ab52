import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { lockDataDir } from '../../../src/server/instance-lock.ts';
import { loadSecretKey } from '../../../src/server/secret-key.ts';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'millrace-unit-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

describe('the secret key', () => {
  const hex = '00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF';
  it('is made once, readable by its owner alone', () => {
    const dataDir = join(directory, 'new', 'data');
    const first = loadSecretKey(dataDir, {});
    expect(first).toMatch(/^[0-9a-f]{64}$/);
    expect(loadSecretKey(dataDir, {})).toBe(first);
    expect(statSync(join(dataDir, 'secret-key')).mode & 0o777).toBe(0o600);
  });
  it('comes from the environment in hex or base64, or from a file, and then nothing is written', () => {
    const base64 = Buffer.from(hex, 'hex').toString('base64');
    const file = join(directory, 'key');
    writeFileSync(file, `${base64}\n`);
    const dataDir = join(directory, 'data');
    expect(loadSecretKey(dataDir, { MILLRACE_SECRET_KEY: hex })).toBe(hex.toLowerCase());
    expect(loadSecretKey(dataDir, { MILLRACE_SECRET_KEY: base64 })).toBe(hex.toLowerCase());
    expect(loadSecretKey(dataDir, { MILLRACE_SECRET_KEY: '', MILLRACE_SECRET_KEY_FILE: file })).toBe(hex.toLowerCase());
    expect(existsSync(dataDir)).toBe(false);
  });
  it('is never replaced because it cannot be read', () => {
    writeFileSync(join(directory, 'secret-key'), 'too short');
    expect(() => loadSecretKey(directory, {})).toThrow('does not hold a key of 32 bytes');
    expect(readFileSync(join(directory, 'secret-key'), 'utf8')).toBe('too short');
    expect(() => loadSecretKey(directory, { MILLRACE_SECRET_KEY: 'abc' })).toThrow('MILLRACE_SECRET_KEY does not hold');
    expect(() => loadSecretKey(directory, { MILLRACE_SECRET_KEY_FILE: '/nowhere' })).toThrow(
      'cannot read the secret key in /nowhere: no such file',
    );
  });
});

describe('the lock of a data directory', () => {
  let other: ChildProcess | undefined;
  afterEach(() => other?.kill('SIGKILL'));

  it('is released, and taken over from a process that is gone or another one with its number', () => {
    const lock = join(directory, 'millrace.lock');
    lockDataDir(directory)();
    expect(existsSync(lock)).toBe(false);
    writeFileSync(lock, '999999999 1\n');
    lockDataDir(directory)();
    writeFileSync(lock, `${process.ppid} 1\n`);
    const release = lockDataDir(directory);
    expect(readFileSync(lock, 'utf8')).toMatch(new RegExp(`^${process.pid} `));
    release();
  });

  it.skipIf(!existsSync('/proc/self/stat'))('is refused while its holder lives (needs /proc)', async () => {
    const script = `import { readFileSync, writeFileSync } from 'node:fs';
      const stat = readFileSync('/proc/self/stat', 'utf8');
      writeFileSync(process.argv[1], process.pid + ' ' + stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] + '\\n');
      console.log('locked'); setInterval(() => {}, 1000);`;
    other = spawn(process.execPath, ['--input-type=module', '-e', script, join(directory, 'millrace.lock')], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await new Promise((resolve) => other?.stdout?.once('data', resolve));
    expect(() => lockDataDir(directory)).toThrow(`in use by another Millrace (PID ${other?.pid})`);
  });
});
