/**
 * Logs in to the upstream in the name of a client, up to the first ReadyForQuery.
 * Invariant: the upstream has proved that it knows the role's verifier where SCRAM was used; no byte behind ReadyForQuery is lost; a
 * connection whose login failed is closed.
 */
import { millraceError } from '../../errors.ts';
import { errorFields, parameter } from '../decode.ts';
import { message } from '../encode.ts';
import type { PeerSocket } from '../static-reader.ts';
import { Reply, Request, Status } from '../tags.ts';
import type { ServerCredentials } from './credentials.ts';
import { md5Answer, md5Hash } from './md5.ts';
import { ConversationEnded, MessageReader } from './message-reader.ts';
import { ScramClient, ScramServerError } from './scram-client.ts';
import { newNonce, Question } from './scram-conversation.ts';
import { scramMechanism } from './scram-keys.ts';

export const protocol30 = 0x30000;
export const protocol32 = 0x30002;
/** Messages while logging in are short; a notice of a login trigger may be longer. */
const longestMessage = 1_048_576;
/** As in the protocol: a cancel key has 4 to 256 bytes. */
const longestKey = 256;

export interface LoginRequest {
  /** Default 3.0. */
  readonly protocol?: number;
  /** `user` among them. */
  readonly parameters: Readonly<Record<string, string>>;
}

export interface ServerLogin {
  /** What the server agreed to. */
  readonly protocol: number;
  /** Its ParameterStatus messages. */
  readonly parameters: Map<string, string>;
  /** 0 and empty when the server has sent no BackendKeyData. */
  readonly pid: number;
  readonly key: Buffer;
  /** NoticeResponses, whole. */
  readonly notices: readonly Buffer[];
  /** What was read behind ReadyForQuery. */
  readonly rest: Buffer;
}

/** The server refused. `response` is its ErrorResponse, `fields` what it says. */
export class LoginRefused extends Error {
  readonly fields: Readonly<Record<string, string>>;
  readonly response: Buffer;
  constructor(response: Buffer) {
    const fields = errorFields(response, 'utf8');
    super(fields['M'] ?? 'the upstream refused the login');
    this.name = 'LoginRefused';
    this.fields = fields;
    this.response = response;
  }
}

export function startupMessage({ protocol = protocol30, parameters }: LoginRequest): Buffer {
  const words = Object.entries(parameters).flat();
  const body = Buffer.from([...words.map((word) => `${word.replaceAll('\0', '')}\0`), '\0'].join(''), 'utf8');
  const head = Buffer.alloc(8);
  head.writeInt32BE(8 + body.length, 0);
  head.writeInt32BE(protocol, 4);
  return Buffer.concat([head, body]);
}

/**
 * The connection is paused afterwards, without listeners of this function, and its `reader.receive` is what it was.
 * Rejects with LoginRefused, ConversationEnded, ScramServerError or MillraceError (`upstream_login_impossible`).
 */
export async function logIn(peer: PeerSocket, request: LoginRequest, credentials: ServerCredentials): Promise<ServerLogin> {
  const reader = new MessageReader(peer);
  try {
    peer.socket.write(startupMessage(request));
    const answers = new ServerAnswers(request.parameters['user'] ?? '', credentials);
    const login = await conversation(peer, reader, answers, request.protocol ?? protocol30);
    return { ...login, rest: reader.release() };
  } catch (error) {
    reader.release();
    peer.socket.on('error', () => undefined).destroy();
    throw error;
  }
}

async function conversation(
  peer: PeerSocket,
  reader: MessageReader,
  answers: ServerAnswers,
  asked: number,
): Promise<Omit<ServerLogin, 'rest'>> {
  const parameters = new Map<string, string>();
  const notices: Buffer[] = [];
  let protocol = asked;
  let pid = 0;
  let key: Buffer = Buffer.alloc(0);
  for (;;) {
    const next = await reader.next(longestMessage);
    switch (next[0]) {
      case Reply.authentication: {
        const answer = await answers.to(next);
        if (answer !== null) peer.socket.write(answer);
        break;
      }
      case Reply.negotiateProtocolVersion:
        protocol = next.readInt32BE(5);
        break;
      case Reply.parameterStatus: {
        const { name, value } = parameter(next);
        parameters.set(name, Buffer.from(value, 'latin1').toString('utf8'));
        break;
      }
      case Reply.backendKeyData:
        if (next.length < 13 || next.length > 9 + longestKey) throw new ConversationEnded('invalid cancel key of the server');
        pid = next.readInt32BE(5);
        key = Buffer.from(next.subarray(9));
        break;
      case Reply.notice:
        notices.push(Buffer.from(next));
        break;
      case Reply.error:
        throw new LoginRefused(next);
      case Reply.readyForQuery:
        if (!answers.complete || next[5] !== Status.idle) throw new ConversationEnded('the server is ready out of turn');
        return { protocol, parameters, pid, key, notices };
      default:
        throw new ConversationEnded(`unexpected message ${JSON.stringify(String.fromCharCode(next[0] ?? 0))} during login`);
    }
  }
}

/** Answers authentication requests. Pure but for the nonce. */
export class ServerAnswers {
  /** AuthenticationOk has come. */
  complete = false;
  readonly #user: string;
  readonly #credentials: ServerCredentials;
  #scram: ScramClient | null = null;
  #verified = false;

  constructor(user: string, credentials: ServerCredentials) {
    this.#user = user;
    this.#credentials = credentials;
  }

  /** The message to send, null when there is none to. Rejects where there is no answer. */
  async to(question: Buffer): Promise<Buffer | null> {
    if (this.complete || question.length < 9) throw new ConversationEnded('unexpected authentication request of the server');
    const credentials = this.#credentials;
    switch (question.readInt32BE(5)) {
      case Question.ok:
        if (this.#scram !== null && !this.#verified) throw new ScramServerError('the server ended the SCRAM exchange without its proof');
        this.complete = true;
        return null;
      case Question.cleartext:
        if (credentials.kind !== 'password') throw this.#impossible('a password in clear');
        return passwordMessage(credentials.password);
      case Question.md5:
        if (credentials.kind !== 'password' && credentials.kind !== 'md5') throw this.#impossible('md5');
        return passwordMessage(
          md5Answer(credentials.kind === 'md5' ? credentials.hash : md5Hash(this.#user, credentials.password), question.subarray(9, 13)),
        );
      case Question.sasl: {
        if (credentials.kind !== 'password' && credentials.kind !== 'scram') throw this.#impossible(scramMechanism);
        if (!question.toString('latin1', 9).split('\0').includes(scramMechanism)) throw this.#impossible('another SASL mechanism');
        this.#scram = new ScramClient(credentials, newNonce());
        const first = Buffer.from(this.#scram.first(), 'utf8');
        const length = Buffer.alloc(4);
        length.writeInt32BE(first.length);
        return message(Request.password, [Buffer.from(`${scramMechanism}\0`, 'latin1'), length, first]);
      }
      case Question.saslContinue:
        if (this.#scram === null) throw new ConversationEnded('unexpected authentication request of the server');
        return message(Request.password, [Buffer.from(await this.#scram.final(question.toString('utf8', 9)), 'utf8')]);
      case Question.saslFinal:
        if (this.#scram === null) throw new ConversationEnded('unexpected authentication request of the server');
        this.#scram.verify(question.toString('utf8', 9));
        this.#verified = true;
        return null;
      default:
        throw this.#impossible('a method Millrace does not know');
    }
  }

  #impossible(method: string): Error {
    const has = { password: 'a password', scram: 'SCRAM keys', md5: 'an md5 hash', none: 'no secret' }[this.#credentials.kind];
    return millraceError('upstream_login_impossible', {
      user: this.#user,
      cause: `The upstream asks for ${method}, and Millrace has ${has}.`,
    });
  }
}

function passwordMessage(text: string): Buffer {
  return message(Request.password, [Buffer.from(`${text.replaceAll('\0', '')}\0`, 'utf8')]);
}
