/**
 * The frame of every client's tests.
 * A user must not be able to tell Millrace from Postgres: what a client does runs through Millrace and, in a database of its own, directly;
 * what it returns has to be the same. What only Millrace can do runs there alone.
 */
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { createDatabases } from './databases.ts';
import { type LiveView, liveView } from './live.ts';
import { type Neighbours, neighbours } from './neighbours.ts';
import { type Place, type Target, target } from './place.ts';

export interface ClientKind<Client> {
  /** Connects the client, pooling as its users pool. */
  open(target: Target, place: Place): Client | Promise<Client>;
  close(client: Client): unknown;
}

export interface Suite<Client> {
  readonly place: Place;
  /** Runs through Millrace and directly: each run has to hold what it expects, and both have to return the same. */
  both(name: string, run: (client: Client, target: Target) => unknown): void;
  /** Runs through Millrace alone: what differs there. */
  through(name: string, run: (client: Client, target: Target) => unknown): void;
  /** Runs through Millrace alone, with an origin that exists and a live view over its table that the first such test makes. */
  live(name: string, run: (client: Client, view: LiveView, target: Target) => Promise<void>): void;
}

/** Describes a client once per pool mode. */
export function clientSuite<Client>(name: string, kind: ClientKind<Client>, define: (suite: Suite<Client>) => void): void {
  describe.each(inject('places'))(`${name}, pool mode $mode`, (place) => {
    const databases = { through: `${name.replace(/\W/g, '_')}_through`, direct: `${name.replace(/\W/g, '_')}_direct` };
    const through = target(place, databases.through, true);
    const direct = target(place, databases.direct, false);
    const opened: { through?: Client; direct?: Client; view?: LiveView; neighbours?: Neighbours } = {};

    beforeAll(async () => {
      await createDatabases(place, Object.values(databases));
      if (place.mode !== 'session') opened.neighbours = await neighbours(through);
      opened.through = await kind.open(through, place);
      opened.direct = await kind.open(direct, place);
    });
    afterAll(async () => {
      for (const client of [opened.through, opened.direct]) if (client !== undefined) await kind.close(client);
      await opened.view?.end();
      await opened.neighbours?.end();
    });

    define({
      place,
      both: (title, run) =>
        test(title, async () => {
          const directly = await inTime('directly', run(opened.direct as Client, direct));
          expect(await inTime('through Millrace', run(opened.through as Client, through))).toEqual(directly);
        }),
      through: (title, run) => test(title, async () => void (await inTime('through Millrace', run(opened.through as Client, through)))),
      live: (title, run) =>
        test(title, async () => {
          opened.view ??= await liveView(place, `${name.replace(/\W/g, '_')}_origin`);
          await run(opened.through as Client, opened.view, through);
        }),
    });
  });
}

/** A client that waits for ever is to be told from one that waits for Millrace. */
async function inTime(where: string, work: unknown): Promise<unknown> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${where}: no end after 40 s`)), 40_000);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
