/**
 * Which options a connection of each kind takes.
 * Invariant: what is stored has been checked against this table, and values that SHOW CREATE must not show are secrets.
 */
import type { ConnectionOptions } from '../catalog/connection-address.ts';
import { millraceError } from '../errors.ts';
import type { ConnectionTarget } from '../sql/ast.ts';

interface Kind {
  /** As messages call it. */
  readonly shown: string;
  readonly known: readonly string[];
  readonly required: readonly string[];
  /** To be given as SECRET only. */
  readonly secret: readonly string[];
}

const certificateOptions = ['SSL CERTIFICATE AUTHORITY', 'SSL CERTIFICATE', 'SSL KEY'];

const kinds: Readonly<Record<ConnectionTarget, Kind>> = {
  postgres: {
    shown: 'POSTGRES',
    known: ['HOST', 'PORT', 'USER', 'PASSWORD', 'DATABASE', 'SSL MODE', ...certificateOptions],
    required: ['HOST', 'DATABASE', 'USER'],
    secret: ['PASSWORD'],
  },
  kafka: {
    shown: 'KAFKA',
    known: [
      ...['BROKER', 'BROKERS', 'SECURITY PROTOCOL', 'SASL MECHANISMS', 'SASL USERNAME', 'SASL PASSWORD', ...certificateOptions],
      ...['PROGRESS TOPIC', 'PROGRESS TOPIC REPLICATION FACTOR'],
    ],
    required: [],
    secret: ['SASL PASSWORD', 'SSL KEY'],
  },
  'confluent schema registry': {
    shown: 'CONFLUENT SCHEMA REGISTRY',
    known: ['URL', 'USERNAME', 'PASSWORD', ...certificateOptions],
    required: ['URL'],
    secret: ['PASSWORD', 'SSL KEY'],
  },
};

/** As messages call it: "CONFLUENT SCHEMA REGISTRY". */
export const shownTarget = (target: ConnectionTarget): string => kinds[target].shown;

/** The kind as the catalog has it, and as Materialize shows it. */
export const storedType = (target: ConnectionTarget): string => target.replaceAll(' ', '-');

/** The kind of a stored connection. */
export function targetOf(type: string): ConnectionTarget {
  const target = type.replaceAll('-', ' ');
  return target === 'kafka' || target === 'confluent schema registry' ? target : 'postgres';
}

export function requireKnownOption(target: ConnectionTarget, name: string, position: { readonly position?: number } = {}): void {
  const { shown, known } = kinds[target];
  if (known.includes(name)) return;
  throw millraceError(
    'invalid_option',
    { message: `${shown} connections do not support ${name} values`, hint: `The options are: ${known.join(', ')}.` },
    position,
  );
}

export function requireSecretOption(
  target: ConnectionTarget,
  name: string,
  isSecret: boolean,
  position: { readonly position: number },
): void {
  if (isSecret || !kinds[target].secret.includes(name)) return;
  throw millraceError(
    'invalid_option',
    {
      message: `${name} must be a secret`,
      hint: `Type: CREATE SECRET my_password AS '...'; and then ${name} SECRET my_password.`,
    },
    position,
  );
}

export function requireComplete(target: ConnectionTarget, options: ConnectionOptions): void {
  for (const name of kinds[target].required) {
    if (options[name] === undefined) {
      throw millraceError('invalid_option', { message: `${name} option is required`, hint: `Add ${name} '...' to the list.` });
    }
  }
  if (target === 'kafka') {
    if (options['BROKER'] === undefined && options['BROKERS'] === undefined) {
      throw millraceError('invalid_option', {
        message: 'invalid CONNECTION: must set BROKER or BROKERS',
        hint: "Add BROKER 'host:9092' to the list.",
      });
    }
    if (options['BROKER'] !== undefined && options['BROKERS'] !== undefined) {
      throw millraceError('invalid_option', { message: 'can only set one of BROKER and BROKERS' });
    }
  }
  if (target === 'confluent schema registry' && options['PASSWORD'] !== undefined && options['USERNAME'] === undefined) {
    throw millraceError('invalid_option', {
      message: 'USERNAME option is required',
      hint: "Add USERNAME '...' to the list: PASSWORD alone says nothing.",
    });
  }
  if ((options['SSL KEY'] === undefined) !== (options['SSL CERTIFICATE'] === undefined)) {
    throw millraceError('invalid_option', { message: 'invalid CONNECTION: both SSL KEY and SSL CERTIFICATE are required' });
  }
}
