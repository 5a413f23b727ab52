import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { parseCopies, parseHostPort, parseUpstream, parseWorkers, showHostPort } from '../../../src/config-loading.ts';

const directory = mkdtempSync(join(tmpdir(), 'millrace-unit-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe('parseHostPort', () => {
  it.each([
    ['127.0.0.1:6875', { host: '127.0.0.1', port: 6875 }],
    ['localhost:0', { host: 'localhost', port: 0 }],
    ['[::1]:6875', { host: '::1', port: 6875 }],
    [':6875', { host: '0.0.0.0', port: 6875 }],
    ['*:6875', { host: '0.0.0.0', port: 6875 }],
    ['6875', { host: '127.0.0.1', port: 6875 }],
  ])('%s', (text, expected) => {
    expect(parseHostPort(text, '--listen')).toEqual(expected);
  });
  it.each(['', 'localhost', 'localhost:', 'a:99999', '::1:6875', 'a:b', 'a:-1'])('refuses "%s" and names the flag', (text) => {
    expect(() => parseHostPort(text, '--http')).toThrow(`--http: "${text}" is not HOST:PORT`);
  });
  it('shows IPv6 in brackets', () => {
    expect(showHostPort({ host: '::1', port: 1 })).toBe('[::1]:1');
  });
});

describe('parseCopies', () => {
  it('takes numbers within their limits, and names the flag that is wrong', () => {
    expect(parseCopies('4', '1')).toEqual({ sessions: 4, chunkBytes: 1024 * 1024 });
    expect(() => parseCopies('0', '32')).toThrow('--copy-sessions: "0" is not a number from 1 to 16');
    expect(() => parseCopies('2', 'much')).toThrow('--copy-chunk-mb: "much" is not a number from 1 to 65536');
  });
});

describe('parseWorkers', () => {
  it('takes 1 to 64', () => {
    expect(parseWorkers('3')).toBe(3);
    for (const text of ['0', '65', '1.5', 'x']) expect(() => parseWorkers(text)).toThrow('--workers');
  });
});

describe('parseUpstream', () => {
  const ssl = { mode: 'prefer' };
  it.each([
    ['postgres://u:p@h:5433/d', { host: 'h', port: 5433, user: 'u', password: 'p', database: 'd', ssl }],
    ['postgresql://u@h', { host: 'h', port: 5432, user: 'u', database: 'u', ssl }],
    ['postgres://u:p%40%2F@[::1]:1/d%20x', { host: '::1', port: 1, user: 'u', password: 'p@/', database: 'd x', ssl }],
    ['postgres://u:p@ss@h/d', { host: 'h', port: 5432, user: 'u', password: 'p@ss', database: 'd', ssl }],
    ['postgres://u@%2Fvar%2Frun/d', { host: '/var/run', port: 5432, user: 'u', database: 'd', ssl }],
    ['postgres:///d?host=/tmp&user=u&port=6000', { host: '/tmp', port: 6000, user: 'u', database: 'd', ssl }],
    ['postgres://u@h/d?sslmode=require&application_name=x', { host: 'h', port: 5432, user: 'u', database: 'd', ssl: { mode: 'require' } }],
    ['postgres://u@h/d?sslmode=allow', { host: 'h', port: 5432, user: 'u', database: 'd', ssl }],
    ['postgres://u@h/d?sslrootcert=system', { host: 'h', port: 5432, user: 'u', database: 'd', ssl: { mode: 'verify-full' } }],
    ["host=h port=7 user=u dbname='a b' password='it\\'s'", { host: 'h', port: 7, user: 'u', database: 'a b', password: "it's", ssl }],
    ['host = /tmp  user = u', { host: '/tmp', port: 5432, user: 'u', database: 'u', ssl }],
  ])('%s', (text, expected) => {
    expect(parseUpstream(text, {})).toEqual(expected);
  });

  it('takes what is missing from the environment, and the user from the system', () => {
    expect(parseUpstream('postgres://h', { PGPASSWORD: 'secret', PGUSER: 'me' })).toMatchObject({
      user: 'me',
      password: 'secret',
      database: 'me',
    });
    expect(parseUpstream('postgres://u:given@h', { PGPASSWORD: 'secret' }).password).toBe('given');
    expect(parseUpstream('postgres://h', {}).user).toBe(userInfo().username);
  });

  it('reads certificates', () => {
    const file = join(directory, 'ca.pem');
    writeFileSync(file, 'PEM');
    const options = ['sslrootcert', 'sslcert', 'sslkey'].map((name) => `${name}=${encodeURIComponent(file)}`).join('&');
    expect(parseUpstream(`postgres://u@h/d?sslmode=verify-ca&${options}`, {}).ssl).toEqual({
      mode: 'verify-ca',
      ca: 'PEM',
      cert: 'PEM',
      key: 'PEM',
    });
    expect(() => parseUpstream('postgres://u@h/d?sslkey=/nowhere/key', {})).toThrow(
      'cannot read sslkey "/nowhere/key": no such file or directory',
    );
  });

  it.each([
    'h:5432',
    'mysql://h',
    'postgres://u:top-secret@h:x/d',
    'postgres://u:top-secret@h/d?sslmode=no',
    'postgres://u:top-secret@h/d?wrong=1',
    'postgres://u:top-secret@a,b/d',
    'postgres://u:top-secret%zz@h/d',
    'postgres://u:top-secret@::1/d',
    "host=h password='top-secret",
    '',
  ])('refuses "%s" in one line without the password', (text) => {
    let message = '';
    try {
      parseUpstream(text, {});
    } catch (error) {
      message = (error as Error).message;
    }
    expect(message).toMatch(/^--upstream\b/);
    expect(message).not.toContain('\n');
    expect(message).not.toContain('top-secret');
  });
});
