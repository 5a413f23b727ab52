/**
 * TLS towards clients.
 * Invariant: a socket handed out has finished its handshake (TLS 1.2 or newer), speaks `postgresql` where ALPN was used, and sends
 * records of at most 8 kB. Replacing certificates changes later connections only.
 */
import { constants } from 'node:crypto';
import type { Socket } from 'node:net';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import type { Logger } from '../log.ts';
import type { ClientTlsSettings } from './pool/settings.ts';

const protocol = 'postgresql';
/**
 * libpq reads into 16 kB: an asynchronous client that got part of a larger record waits for the socket while the rest lies decrypted in
 * OpenSSL's buffer, for ever (CockroachDB #148222).
 */
const longestRecord = 8_192;

/** What is true of connections that begin now. */
export interface TlsContext {
  /** SSLRequest and direct TLS are answered. */
  readonly offered: boolean;
  /** A client without TLS is turned away (but for cancel requests, which libpq before 17 sends in the clear). */
  readonly required: boolean;
  /** A client needs a certificate that `ca` has signed. */
  readonly verifies: boolean;
  /** Never listens: it only makes TLS of connections that were accepted elsewhere. */
  readonly server: Server | null;
}

/** Whom a connection waiting for its handshake belongs to. */
interface Waiting {
  readonly direct: boolean;
  readonly secured: (secure: TLSSocket) => void;
}

export class ClientTls {
  readonly #log: Logger;
  readonly #waiting = new WeakMap<Socket, Waiting>();
  current: TlsContext;

  /** Throws when certificate and key cannot be used. */
  constructor(settings: ClientTlsSettings, log: Logger) {
    this.#log = log;
    this.current = this.#context(settings);
  }

  /** For connections from now on. Throws when certificate and key cannot be used; then nothing has changed. */
  replace(settings: ClientTlsSettings): void {
    this.current = this.#context(settings);
  }

  /**
   * Starts the handshake on a paused socket whose unread bytes, if any, belong to it. `direct`: without an SSLRequest, so that ALPN is
   * obligatory (as in Postgres 17). `secured` is not called when the handshake fails: the socket is closed then.
   */
  handshake(socket: Socket, direct: boolean, secured: (secure: TLSSocket) => void): void {
    const { server } = this.current;
    if (server === null) {
      socket.destroy();
      return;
    }
    this.#waiting.set(socket, { direct, secured });
    server.emit('connection', socket);
  }

  #context({ mode, cert, key, ca }: ClientTlsSettings): TlsContext {
    if (mode === 'disable') return { offered: false, required: false, verifies: false, server: null };
    if (cert === undefined || key === undefined) throw new Error(`TLS mode ${mode} for clients needs a certificate and its key`);
    const verifies = mode === 'verify-ca' || mode === 'verify-full';
    if (verifies && ca === undefined) throw new Error(`TLS mode ${mode} for clients needs the certificates to verify theirs against`);
    const server = createServer({
      cert,
      key,
      ...(ca === undefined ? {} : { ca }),
      requestCert: verifies,
      // Whoever has none that is valid is told so in words once the connection stands.
      rejectUnauthorized: false,
      minVersion: 'TLSv1.2',
      // A client whose list lacks it gets the alert no_application_protocol.
      ALPNProtocols: [protocol],
      // As Postgres: no session is resumed, nothing is negotiated again.
      secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
    });
    server.on('secureConnection', (secure) => this.#secured(secure));
    server.on('tlsClientError', (error) => this.#log.debug({ cause: error.message }, 'a TLS handshake with a client failed'));
    return { offered: true, required: mode !== 'allow' && mode !== 'prefer', verifies, server };
  }

  #secured(secure: TLSSocket): void {
    secure.on('error', () => secure.destroy());
    const { _parent: socket } = secure as unknown as { readonly _parent?: Socket };
    const waiting = socket === undefined ? undefined : this.#waiting.get(socket);
    if (waiting === undefined || (waiting.direct && secure.alpnProtocol !== protocol)) {
      secure.destroy();
      return;
    }
    secure.setMaxSendFragment(longestRecord);
    waiting.secured(secure);
  }
}

/** The name a verified client certificate was given to: its one common name. Null without a valid certificate, or when it is no plain name. */
export function certificateName(secure: TLSSocket): string | null {
  if (!secure.authorized) return null;
  const name: unknown = secure.getPeerCertificate().subject?.CN;
  return typeof name === 'string' && name !== '' && !name.includes('\0') ? name : null;
}
