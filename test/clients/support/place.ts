/** Where a client finds the two servers that must look the same to it. */
import type { ServerAddress } from '../../../src/config.ts';

/** What globalSetup started for one pool mode. */
export interface Place {
  readonly mode: string;
  readonly host: string;
  readonly upstreamPort: number;
  readonly millracePort: number;
}

declare module 'vitest' {
  interface ProvidedContext {
    places: readonly Place[];
  }
}

export const role = { user: 'app', password: 'an app of ours' } as const;

/** An address with a password, and as the URL most clients are configured with. */
export interface Target extends ServerAddress {
  readonly password: string;
  readonly url: string;
  /** The same database of the same server as the superuser, past Millrace. */
  readonly ownerUrl: string;
}

/** A database, reached directly or through Millrace. */
export function target(place: Place, database: string, through: boolean): Target {
  const { host } = place;
  const port = through ? place.millracePort : place.upstreamPort;
  return {
    ...role,
    host,
    port,
    database,
    ssl: { mode: 'disable' },
    url: `postgres://${role.user}:${encodeURIComponent(role.password)}@${host}:${port}/${database}`,
    ownerUrl: `postgres://postgres@${host}:${place.upstreamPort}/${database}`,
  };
}
