/**
 * How a program that refuses to run as root is run when Millrace itself is root.
 * Invariant: a way is chosen only after it was seen to work on this machine with these very paths.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

export interface RunAs {
  readonly how: 'self' | 'uid' | 'user-namespace' | 'capabilities';
  /** Who has to own the files of the program; undefined: as they are. */
  readonly owner?: { readonly uid: number; readonly gid: number };
  /** Command and arguments to be put before the program's own. Each replaces itself by what follows, so the process id stays. */
  readonly prefix: readonly string[];
  /** For child_process.spawn. */
  readonly identity: { readonly uid?: number; readonly gid?: number };
}

/**
 * The least privileged way to run `program` on files below `directory`, an existing directory.
 * `currentOwner` is the uid that owns earlier files of the program there, kept where it can be.
 */
export function chooseRunAs(program: string, directory: string, currentOwner?: number): RunAs {
  const self = process.getuid?.();
  if (self !== 0) return { how: 'self', prefix: [], identity: {} };
  const account = unprivilegedAccount(currentOwner);
  const ways: readonly RunAs[] = [
    // A real other user: possible where that user can reach the clone and the data.
    { how: 'uid', owner: account, prefix: [], identity: account },
    // Below a directory only root may enter: the kernel still sees the owner of the files, the program sees an ordinary user.
    {
      how: 'user-namespace',
      owner: { uid: 0, gid: process.getgid?.() ?? 0 },
      prefix: ['unshare', '--user', '--map-user=1000', '--map-group=1000', '--'],
      identity: {},
    },
    // Containers often forbid namespaces but keep this capability. no_setuid_fixup: access(2) would ignore it otherwise.
    {
      how: 'capabilities',
      owner: account,
      prefix: [
        'setpriv',
        `--reuid=${account.uid}`,
        `--regid=${account.gid}`,
        '--clear-groups',
        '--securebits=+no_setuid_fixup',
        '--inh-caps=-all,+dac_override',
        '--ambient-caps=-all,+dac_override',
        '--',
      ],
      identity: {},
    },
  ];
  const way = ways.find((candidate) => works(candidate, program, directory));
  if (way === undefined) {
    throw new Error(
      `PostgreSQL does not run as root, and no other user can reach ${directory}: start Millrace as an ordinary user, or put it and its data directory where all users may go`,
    );
  }
  return way;
}

function works(way: RunAs, program: string, directory: string): boolean {
  const [command = '/bin/sh', ...rest] = [
    ...way.prefix,
    '/bin/sh',
    '-c',
    'cd "$1" && test "$(id -u)" != 0 && "$2" --version',
    'sh',
    directory,
    program,
  ];
  return spawnSync(command, rest, { cwd: '/', stdio: 'ignore', timeout: 10_000, ...way.identity }).status === 0;
}

/** The owner of what is there already, else `postgres`, else `nobody`, else a number that no account has. */
function unprivilegedAccount(currentOwner: number | undefined): { uid: number; gid: number } {
  const accounts = readAccounts();
  const known = accounts.find((one) => one.uid === currentOwner && one.uid !== 0);
  if (currentOwner !== undefined && currentOwner !== 0) return known ?? { uid: currentOwner, gid: currentOwner };
  return accounts.find((one) => one.name === 'postgres') ?? accounts.find((one) => one.name === 'nobody') ?? { uid: 65_533, gid: 65_533 };
}

function readAccounts(): readonly { name: string; uid: number; gid: number }[] {
  try {
    return readFileSync('/etc/passwd', 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .filter((parts) => parts.length >= 4)
      .map(([name = '', , uid, gid]) => ({ name, uid: Number(uid), gid: Number(gid) }));
  } catch {
    return [];
  }
}
