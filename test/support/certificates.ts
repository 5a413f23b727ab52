/** Certificates for tests, made with openssl in a directory of their own. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Certificate {
  readonly cert: string;
  readonly key: string;
  readonly certFile: string;
  readonly keyFile: string;
}

export interface TestAuthority extends Certificate {
  /** A certificate signed by this authority, for `name` as common name and DNS name. */
  issue(name: string): Certificate;
  /** Removes all files. */
  remove(): void;
}

/** A certificate authority that can issue certificates. */
export function testAuthority(name = 'Millrace test authority'): TestAuthority {
  const home = mkdtempSync(join(tmpdir(), 'millrace-certificates-'));
  const openssl = (...args: readonly string[]): void => {
    execFileSync('openssl', args, { cwd: home, stdio: 'ignore' });
  };
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const files = (stem: string): Certificate => {
    const certFile = join(home, `${stem}.crt`);
    const keyFile = join(home, `${stem}.key`);
    return { certFile, keyFile, cert: readFileSync(certFile, 'utf8'), key: readFileSync(keyFile, 'utf8') };
  };
  openssl('req', '-x509', ...newKey, '-keyout', 'ca.key', '-out', 'ca.crt', '-days', '2', '-subj', `/CN=${name}`);
  let issued = 0;
  return {
    ...files('ca'),
    issue(subject) {
      const stem = `issued-${++issued}`;
      const request = [
        '-keyout',
        `${stem}.key`,
        '-out',
        `${stem}.csr`,
        '-subj',
        `/CN=${subject}`,
        '-addext',
        `subjectAltName=DNS:${subject}`,
      ];
      openssl('req', ...newKey, ...request);
      const signing = [
        '-CA',
        'ca.crt',
        '-CAkey',
        'ca.key',
        '-CAcreateserial',
        '-out',
        `${stem}.crt`,
        '-days',
        '2',
        '-copy_extensions',
        'copy',
      ];
      openssl('x509', '-req', '-in', `${stem}.csr`, ...signing);
      return files(stem);
    },
    remove: () => rmSync(home, { recursive: true, force: true }),
  };
}
