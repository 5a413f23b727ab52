/**
 * A connection to the upstream, TLS included.
 * Invariant: the socket handed out is ready for the startup packet and no byte of the server has been lost; with a mode that promises
 * encryption it is encrypted, with one that promises verification the certificate was verified.
 */
import { isIP, connect as netConnect, type Socket } from 'node:net';
import { type ConnectionOptions, checkServerIdentity, connect as tlsConnect } from 'node:tls';
import type { ServerAddress, SslOptions } from '../config.ts';
import { sslRequest } from './encode.ts';
import { type PeerSocket, readDirectly, StaticReader, withStaticReader } from './static-reader.ts';

const connectTimeout = 30_000;

/**
 * Of all connections, to both sides: a peer that vanished without a word is noticed after a minute, and 10 probes a second apart. The
 * system's own default would hold its session, locks included, for two hours.
 */
export const keepAlive = { keepAlive: true, keepAliveInitialDelay: 60_000 } as const;

/** Opens a connection. Rejects with an Error whose message can be shown to a user. */
export async function connectUpstream(address: ServerAddress): Promise<PeerSocket> {
  const unix = address.host.startsWith('/');
  const { ssl } = address;
  const reader = unix || ssl.mode === 'disable' ? new StaticReader() : null;
  const common = { allowHalfOpen: true, ...(reader === null ? {} : { onread: reader }) };
  const socket = await opened(
    unix
      ? netConnect({ path: `${address.host}/.s.PGSQL.${address.port}`, ...common })
      : netConnect({ host: address.host, port: address.port, noDelay: true, ...keepAlive, ...common }),
  );
  if (reader !== null) {
    readDirectly(socket, reader);
    return { socket, reader };
  }
  try {
    if (!(await offersTls(socket))) {
      if (ssl.mode !== 'prefer') throw new Error('the server does not support SSL, but SSL was required');
      return withStaticReader(socket);
    }
    return { socket: await secured(socket, address.host, ssl), reader: null };
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

function opened(socket: Socket): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const failed = (error: Error): void => {
      socket.destroy();
      reject(error);
    };
    socket.setTimeout(connectTimeout, () => failed(new Error('timeout expired')));
    socket.once('error', failed);
    socket.once('connect', () => {
      socket.setTimeout(0);
      socket.removeAllListeners('timeout');
      socket.off('error', failed);
      resolve(socket);
    });
  });
}

/** Asks for TLS; the answer is one byte, and nothing may follow it before the handshake (CVE-2021-23222). */
function offersTls(socket: Socket): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const finish = (error: Error | null, yes: boolean): void => {
      socket.setTimeout(0);
      socket.off('data', onData).off('error', onError).off('end', onEnd).off('timeout', onTimeout);
      socket.pause();
      if (error === null) resolve(yes);
      else reject(error);
    };
    const onError = (error: Error): void => finish(error, false);
    const onEnd = (): void => finish(new Error('server closed the connection unexpectedly'), false);
    const onTimeout = (): void => finish(new Error('timeout expired'), false);
    const onData = (answer: Buffer): void => {
      if (answer.length !== 1) finish(new Error('received unencrypted data after SSL response'), false);
      else if (answer[0] === 0x53) finish(null, true);
      else if (answer[0] === 0x4e) finish(null, false);
      else finish(new Error('received invalid response to SSL negotiation'), false);
    };
    socket.setTimeout(connectTimeout);
    socket.on('data', onData).on('error', onError).on('end', onEnd).on('timeout', onTimeout);
    socket.write(sslRequest);
  });
}

function secured(socket: Socket, host: string, ssl: SslOptions): Promise<Socket> {
  const verify = ssl.mode === 'verify-ca' || ssl.mode === 'verify-full' || (ssl.mode === 'require' && ssl.ca !== undefined);
  const options: ConnectionOptions = {
    socket,
    ALPNProtocols: ['postgresql'],
    rejectUnauthorized: verify,
    // As libpq: verify-ca looks at the chain only, verify-full at the name too.
    checkServerIdentity: (name, certificate) => (ssl.mode === 'verify-full' ? checkServerIdentity(name, certificate) : undefined),
    host,
    ...(isIP(host) === 0 ? { servername: host } : {}),
    ...(ssl.ca === undefined ? {} : { ca: ssl.ca }),
    ...(ssl.cert === undefined ? {} : { cert: ssl.cert }),
    ...(ssl.key === undefined ? {} : { key: ssl.key }),
  };
  return new Promise((resolve, reject) => {
    const secure = tlsConnect(options);
    const failed = (error: Error): void => {
      secure.destroy();
      reject(error);
    };
    secure.setTimeout(connectTimeout, () => failed(new Error('timeout expired')));
    secure.once('error', failed);
    secure.once('secureConnect', () => {
      secure.setTimeout(0);
      secure.removeAllListeners('timeout');
      secure.off('error', failed);
      secure.setNoDelay(true);
      resolve(secure);
    });
  });
}

/** What failed, in words. Several addresses of one name may each have failed in their own way. */
export function reason(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return error.errors.map(reason).join('; ');
  return error instanceof Error ? error.message : String(error);
}
