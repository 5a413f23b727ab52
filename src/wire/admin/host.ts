/**
 * The consoles of one worker.
 * Invariant: a client is in a console only as a role that was let in by the upstream and is allowed by the settings of that moment.
 */
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import type { ServerAddress } from '../../config.ts';
import { MillraceError, millraceError } from '../../errors.ts';
import type { Logger } from '../../log.ts';
import { version } from '../../version.ts';
import { errorResponse, message, readyForQuery } from '../encode.ts';
import { addresses, tlsOf } from '../live-clients.ts';
import type { ClientRow, PoolRow } from '../pool/report.ts';
import type { ProxySettings } from '../pool/settings.ts';
import { Reply, Status } from '../tags.ts';
import { AdminConsole } from './console.ts';
import { relayLogin, startupFor } from './login.ts';
import type { AdminPort } from './messages.ts';
import { rightOf } from './runner.ts';

export interface HostContext {
  readonly upstream: ServerAddress;
  readonly port: AdminPort;
  readonly log: Logger;
  settings(): ProxySettings;
  newId(): string;
}

interface Guest {
  readonly id: string;
  readonly key: string;
  readonly user: string;
  readonly socket: Socket;
  readonly applicationName: string;
  readonly connectTime: number;
  readonly console: AdminConsole;
}

export class ConsoleHost {
  readonly #context: HostContext;
  readonly #guests = new Map<string, Guest>();

  constructor(context: HostContext) {
    this.#context = context;
  }

  /** Whether a client that asks for `database` wants the console. */
  isFor(database: string): boolean {
    return database !== '' && database === this.#context.settings().adminDatabase;
  }

  /** Lets a client in, or tells it why not. `welcomed` is called when it is in. The socket is paused and has no listeners for data. */
  async serve(client: Socket, user: string, startup: Buffer, rest: Buffer, welcomed: () => void): Promise<void> {
    const { upstream, settings, port, log } = this.#context;
    try {
      const behind = await relayLogin(client, upstream, startupFor(startup, upstream.database), rest);
      const right = rightOf(user, settings(), upstream);
      if (right === null) throw millraceError('console_not_allowed', { role: user });
      if (client.destroyed) return;
      welcomed();
      const context = { user, right, port, upstream, settings };
      const key = newKey();
      const guest: Guest = {
        id: this.#context.newId(),
        key,
        user,
        socket: client,
        applicationName: startupParameter(startup, 'application_name'),
        connectTime: Date.now(),
        console: new AdminConsole(client, context, log),
      };
      this.#guests.set(guest.id, guest);
      client.once('close', () => this.#guests.delete(guest.id));
      client.write(greeting(user, right === 'admin', guest.applicationName, key));
      guest.console.start(behind);
    } catch (error) {
      if (error instanceof MillraceError) client.end(errorResponse(error.fields, 'utf8', 'FATAL'));
      else if (error !== null) {
        log.error({ err: error }, 'a login at the admin console failed unexpectedly');
        client.destroy();
      }
      // So that its leaving is noticed.
      client.resume();
    }
  }

  /** A cancel request, for whichever worker has the console. */
  cancel(key: string): void {
    for (const guest of this.#guests.values()) if (guest.key === key) guest.console.cancel();
  }

  /** Closes one; false when there is none of this id. */
  kill(id: string): boolean {
    const guest = this.#guests.get(id);
    guest?.console.shutDown();
    return guest !== undefined;
  }

  shutDown(): void {
    for (const { console } of this.#guests.values()) console.shutDown();
  }

  clients(): readonly ClientRow[] {
    const database = this.#context.settings().adminDatabase;
    return [...this.#guests.values()].map(({ id, user, socket, applicationName, connectTime, console }) => ({
      id,
      user,
      database,
      state: console.busy ? 'active' : 'idle',
      ...addresses(socket),
      connectTime,
      requestTime: console.requestTime,
      waitUs: 0,
      link: '',
      tls: tlsOf(socket),
      applicationName,
      preparedStatements: 0,
      pinned: '',
    }));
  }

  pools(): readonly PoolRow[] {
    const users = [...this.#guests.values()].map(({ user }) => user);
    const none = { clWaiting: 0, clActiveCancelReq: 0, svActive: 0, svIdle: 0, svUsed: 0, svLogin: 0, maxwaitUs: 0, paused: false };
    return [...new Set(users)].map((user) => ({
      database: this.#context.settings().adminDatabase,
      user,
      poolMode: 'statement',
      clActive: users.filter((one) => one === user).length,
      ...none,
    }));
  }
}

function newKey(): string {
  const key = randomBytes(8);
  key[0] = ((key[0] ?? 0) & 0x3f) | 0x40;
  return key.toString('hex');
}

/** Everything from AuthenticationOk to ReadyForQuery. */
function greeting(user: string, admin: boolean, applicationName: string, key: string): Buffer {
  const said: Readonly<Record<string, string>> = {
    server_version: `15.0 (Millrace ${version})`,
    server_encoding: 'UTF8',
    client_encoding: 'UTF8',
    application_name: applicationName,
    is_superuser: admin ? 'on' : 'off',
    session_authorization: user,
    DateStyle: 'ISO, MDY',
    IntervalStyle: 'postgres',
    TimeZone: 'UTC',
    integer_datetimes: 'on',
    standard_conforming_strings: 'on',
  };
  return Buffer.concat([
    message(Reply.authentication, [Buffer.alloc(4)]),
    ...Object.entries(said).map(([name, value]) => message(Reply.parameterStatus, [Buffer.from(`${name}\0${value}\0`, 'utf8')])),
    message(Reply.backendKeyData, [Buffer.from(key, 'hex')]),
    readyForQuery(Status.idle),
  ]);
}

function startupParameter(packet: Buffer, wanted: string): string {
  const strings = packet.toString('utf8', 8).split('\0');
  for (let i = 0; i + 1 < strings.length && strings[i] !== ''; i += 2) if (strings[i] === wanted) return strings[i + 1] ?? '';
  return '';
}
