/** `millrace check`: what a server allows, line by line. Invariant: changes nothing; every line that is not ok says what to do. */
import type { ServerAddress } from '../config.ts';
import { readUpstreamFacts, showServer, type UpstreamFacts } from './upstream-facts.ts';

export interface CheckLine {
  readonly state: 'ok' | 'missing' | 'note';
  readonly text: string;
}

/** The findings about one server. A server that cannot be reached is one line. */
export async function checkUpstream(address: ServerAddress): Promise<readonly CheckLine[]> {
  let facts: UpstreamFacts;
  try {
    facts = await readUpstreamFacts(address);
  } catch (error) {
    return [{ state: 'missing', text: error instanceof Error ? error.message : String(error) }];
  }
  return [
    { state: 'ok', text: `reachable: ${showServer(address)}, database "${address.database}", role "${address.user}"` },
    ...judge(address, facts),
  ];
}

/** Pure: facts to lines. */
export function judge(address: ServerAddress, facts: UpstreamFacts): readonly CheckLine[] {
  const role = quote(address.user);
  const line = (good: boolean, text: string, remedy: string, otherwise: CheckLine['state'] = 'missing'): CheckLine =>
    good ? { state: 'ok', text } : { state: otherwise, text: `${text}: ${remedy}` };
  return [
    line(facts.major >= 15, `version: PostgreSQL ${facts.version}`, 'Millrace needs PostgreSQL 15 or later'),
    ...(facts.major > 18 ? [{ state: 'note', text: `version: Millrace is tested with PostgreSQL 15 to 18` } as const] : []),
    line(!facts.inRecovery, `primary: ${facts.inRecovery ? 'no, a standby' : 'yes'}`, 'give the primary with --upstream'),
    line(
      facts.walLevel === 'logical',
      `wal_level: ${facts.walLevel}`,
      'stream tables over its tables are kept by triggers, and it cannot be an origin; run ALTER SYSTEM SET wal_level = logical; and restart the server',
      'note',
    ),
    line(
      facts.usedSlots < facts.maxSlots,
      `max_replication_slots: ${facts.maxSlots}, ${Math.max(0, facts.maxSlots - facts.usedSlots)} free`,
      'drop a slot that is not needed (see pg_replication_slots), or run ALTER SYSTEM SET max_replication_slots = 50; and restart the server',
    ),
    line(
      facts.usedSenders < facts.maxSenders,
      `max_wal_senders: ${facts.maxSenders}, ${Math.max(0, facts.maxSenders - facts.usedSenders)} free`,
      'run ALTER SYSTEM SET max_wal_senders = 50; and restart the server',
    ),
    line(
      facts.createInDatabase,
      `CREATE on database "${address.database}": ${facts.createInDatabase ? 'yes' : 'no'}`,
      `the catalog cannot be installed; run GRANT CREATE ON DATABASE ${quote(address.database)} TO ${role};`,
    ),
    line(
      facts.superuser || facts.replication,
      `REPLICATION: ${facts.superuser ? 'yes, superuser' : facts.replication ? 'yes' : 'no'}`,
      `tables of this server cannot be followed; run ALTER ROLE ${role} REPLICATION;`,
    ),
    line(
      facts.superuser || facts.createDatabase,
      `CREATEDB: ${facts.superuser ? 'yes, superuser' : facts.createDatabase ? 'yes' : 'no'}`,
      'not needed by Millrace itself',
      'note',
    ),
  ];
}

/** As printed: aligned, one a line. */
export function showCheck(lines: readonly CheckLine[]): string {
  return lines.map(({ state, text }) => `${state.padEnd(7)}  ${text}\n`).join('');
}

const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;
