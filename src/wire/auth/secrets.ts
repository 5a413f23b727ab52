/**
 * What is known of the roles: auth_file first, then auth_query, as in PgBouncer.
 * Invariant: a secret is neither logged nor kept longer than `lifetime`; a role without one costs no more than a role with one, and
 * however many roles are asked for, memory is bounded.
 */
import type { Logger } from '../../log.ts';

/** Runs auth_query with a role name as $1. Rows: role name and secret. */
export type AuthQuery = (sql: string, user: string) => Promise<readonly (readonly (string | null)[])[]>;

export interface SecretsOptions {
  /** Of auth_file. */
  readonly users: Readonly<Record<string, string>>;
  /** Empty: none. */
  readonly authQuery: string;
  readonly run: AuthQuery;
  readonly log: Logger;
  /** How long an answer of auth_query is believed, in ms. Default 5 s. */
  readonly lifetime?: number;
  readonly now?: () => number;
}

const mostEntries = 10_000;

interface Answer {
  readonly secret: string | null;
  /** False when nobody could say: there is no query, or it failed. */
  readonly certain: boolean;
}

const unknown: Promise<Answer> = Promise.resolve({ secret: null, certain: false });

export class Secrets {
  readonly #options: SecretsOptions;
  readonly #lifetime: number;
  readonly #now: () => number;
  readonly #cache = new Map<string, { readonly answer: Promise<Answer>; readonly until: number }>();

  constructor(options: SecretsOptions) {
    this.#options = options;
    this.#lifetime = options.lifetime ?? 5_000;
    this.#now = options.now ?? Date.now;
  }

  /** Password, md5 hash or SCRAM verifier; null when there is none or it cannot be had. Does not reject. */
  readonly of = async (user: string): Promise<string | null> => (await this.#answer(user)).secret;

  /** Whether what `of` says of the role is all there is to say: a null means that nobody can log in as it with a password. */
  readonly isCertain = async (user: string): Promise<boolean> => (await this.#answer(user)).certain;

  /** Asks again next time: a login with it failed. */
  readonly forget = (user: string): void => {
    this.#cache.delete(user);
  };

  #answer(user: string): Promise<Answer> {
    const { users, authQuery } = this.#options;
    if (Object.hasOwn(users, user)) return Promise.resolve({ secret: users[user] ?? null, certain: true });
    if (authQuery === '' || user === '') return unknown;
    const cached = this.#cache.get(user);
    if (cached !== undefined && cached.until > this.#now()) return cached.answer;
    const answer = this.#ask(user);
    this.#cache.delete(user);
    // The first of a Map is its oldest.
    for (const oldest of this.#cache.keys()) {
      if (this.#cache.size < mostEntries) break;
      this.#cache.delete(oldest);
    }
    this.#cache.set(user, { answer, until: this.#now() + this.#lifetime });
    return answer;
  }

  async #ask(user: string): Promise<Answer> {
    try {
      const [row] = await this.#options.run(this.#options.authQuery, user);
      const [name, secret] = row ?? [];
      // A query that ignores its parameter must not give one role the secret of another.
      return { secret: name === user && secret ? secret : null, certain: true };
    } catch (error) {
      this.#options.log.warn({ user, cause: error instanceof Error ? error.message : String(error) }, 'auth_query failed');
      return { secret: null, certain: false };
    }
  }
}
