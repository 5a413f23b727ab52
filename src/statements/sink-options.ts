/**
 * The options of a sink's target, from what was typed to what is stored.
 * Invariant: every option is known, given once, and of the kind it is used as; the position of an error is that of the option.
 */
import type { AvroFormat, KafkaSink } from '../catalog/sink-model.ts';
import { millraceError } from '../errors.ts';
import type { AvroOption, Option, OptionValue, QualifiedName } from '../sql/ast.ts';

const targets = {
  kafka: [
    ...['TOPIC', 'COMPRESSION TYPE', 'TRANSACTIONAL ID PREFIX', 'PROGRESS GROUP ID PREFIX', 'PARTITION BY'],
    ...['TOPIC REPLICATION FACTOR', 'TOPIC PARTITION COUNT', 'TOPIC CONFIG'],
  ],
  postgres: ['TABLE'],
  webhook: ['URL', 'SECRET'],
} as const;

const compressions: readonly KafkaSink['compression'][] = ['none', 'gzip', 'snappy', 'lz4', 'zstd'];
const levels = ['NONE', 'BACKWARD', 'BACKWARD_TRANSITIVE', 'FORWARD', 'FORWARD_TRANSITIVE', 'FULL', 'FULL_TRANSITIVE'];

export type GivenOptions = ReadonlyMap<string, Option>;

/** By name. Raises for one that is not known there or given twice. */
export function givenOptions(kind: keyof typeof targets, options: readonly Option[]): GivenOptions {
  const known: readonly string[] = targets[kind];
  const given = new Map<string, Option>();
  for (const option of options) {
    const position = { position: option.at + 1 };
    if (!known.includes(option.name)) {
      throw millraceError(
        'invalid_option',
        { message: `${kind.toUpperCase()} sinks do not support ${option.name} values`, hint: `The options are: ${known.join(', ')}.` },
        position,
      );
    }
    if (given.has(option.name)) throw millraceError('invalid_option', { message: `${option.name} specified more than once` }, position);
    given.set(option.name, option);
  }
  return given;
}

/** A text, or a word without quotes. */
export function textOption(given: GivenOptions, name: string): string | null {
  const option = given.get(name);
  if (option === undefined) return null;
  const { value } = option;
  if (value.kind === 'string') return value.value;
  if (value.kind === 'identifier' && value.name.schema === null) return value.name.name;
  throw cannotUse(option, 'string');
}

export function requiredOption(given: GivenOptions, kind: keyof typeof targets, name: string): string {
  const value = textOption(given, name);
  if (value !== null && value !== '') return value;
  throw millraceError('invalid_option', {
    message: `${kind.toUpperCase()} sinks must specify ${name}`,
    hint: `Add ${name} '...' to the list.`,
  });
}

/** A secret, with or without the word SECRET before its name. */
export function secretOption(given: GivenOptions, name: string): QualifiedName | null {
  const option = given.get(name);
  if (option === undefined) return null;
  if (option.value.kind === 'secret' || option.value.kind === 'identifier') return option.value.name;
  throw cannotUse(option, 'secret');
}

/** `schema.name`, also as a text. Parts of a text are split by the caller. */
export function nameOption(given: GivenOptions, name: string): QualifiedName | string | null {
  const option = given.get(name);
  if (option?.value.kind === 'identifier') return option.value.name;
  return textOption(given, name);
}

export function expressionOption(given: GivenOptions, name: string): Extract<OptionValue, { kind: 'expression' }> | null {
  const value = given.get(name)?.value;
  return value?.kind === 'expression' ? value : null;
}

/** What of a Kafka sink is in its list of options, but for PARTITION BY. */
export function kafkaOptions(
  given: GivenOptions,
): Pick<KafkaSink, 'topic' | 'compression' | 'transactionalIdPrefix' | 'partitionCount' | 'replicationFactor' | 'topicConfig'> {
  const topic = requiredOption(given, 'kafka', 'TOPIC');
  if (!/^[A-Za-z0-9._-]{1,249}$/.test(topic) || topic === '.' || topic === '..') {
    throw millraceError(
      'invalid_option',
      { message: `invalid TOPIC: "${topic}"`, hint: 'Names of topics have up to 249 letters, digits, dots, dashes and underscores.' },
      positionOf(given, 'TOPIC'),
    );
  }
  const asked = textOption(given, 'COMPRESSION TYPE')?.toLowerCase() ?? 'lz4';
  const compression = compressions.find((known) => known === asked);
  if (compression === undefined) {
    throw millraceError(
      'invalid_option',
      { message: `invalid COMPRESSION TYPE: "${asked}"`, hint: `The types are: ${compressions.join(', ')}.` },
      positionOf(given, 'COMPRESSION TYPE'),
    );
  }
  return {
    topic,
    compression,
    transactionalIdPrefix: textOption(given, 'TRANSACTIONAL ID PREFIX') ?? '',
    partitionCount: countOption(given, 'TOPIC PARTITION COUNT'),
    replicationFactor: countOption(given, 'TOPIC REPLICATION FACTOR'),
    topicConfig: mapOption(given, 'TOPIC CONFIG'),
  };
}

/** A positive integer; -1 means the broker's default. */
function countOption(given: GivenOptions, name: string): number | null {
  const option = given.get(name);
  if (option === undefined) return null;
  if (option.value.kind !== 'number') throw cannotUse(option, 'number');
  const { value } = option.value;
  if (value === -1) return null;
  if (Number.isInteger(value) && value > 0 && value <= 32767) return value;
  throw millraceError('invalid_option', { message: `${name} must be a positive integer` }, positionOf(given, name));
}

function mapOption(given: GivenOptions, name: string): Readonly<Record<string, string>> {
  const option = given.get(name);
  if (option === undefined) return {};
  if (option.value.kind !== 'map') throw cannotUse(option, "map: MAP['key' => 'value', ..]");
  return Object.fromEntries(option.value.entries);
}

function cannotUse(option: Option, wanted: string): Error {
  const kinds: Readonly<Record<OptionValue['kind'], string>> = {
    string: 'a string',
    number: 'a number',
    boolean: 'a boolean',
    identifier: 'a name',
    secret: 'a secret',
    list: 'a list',
    map: 'a map',
    expression: 'an expression',
  };
  return millraceError(
    'invalid_option',
    { message: `invalid ${option.name}: cannot use ${kinds[option.value.kind]} as ${wanted}` },
    { position: option.at + 1 },
  );
}

function positionOf(given: GivenOptions, name: string): { readonly position?: number } {
  const option = given.get(name);
  return option === undefined ? {} : { position: option.at + 1 };
}

/** FORMAT AVRO (..) as stored. `keyColumns`: null without KEY; `columns`: those of the relation. */
export function avroFormat(
  options: readonly AvroOption[],
  registryId: string,
  relation: { readonly name: string; readonly columns: readonly string[] },
  keyColumns: readonly string[] | null,
): AvroFormat {
  const texts = new Map<string, string>();
  const docs: Record<'key' | 'value', Record<string, string>> = { key: {}, value: {} };
  let nullDefaults = false;
  for (const { name, place, value, at } of options) {
    const position = { position: at + 1 };
    if (place !== null) {
      const column = documented(name, place, relation, position);
      const text = value.kind === 'string' ? value.value : '';
      if (!name.startsWith('VALUE ') && (column === '' || keyColumns?.includes(column) === true)) docs.key[column] = text;
      if (!name.startsWith('KEY ')) docs.value[column] = text;
    } else if (value.kind === 'boolean') nullDefaults = value.value;
    else if (value.kind === 'string') {
      if (texts.has(name)) throw millraceError('invalid_option', { message: `${name} specified more than once` }, position);
      texts.set(name, value.value);
    }
  }
  const keyFullname = texts.get('AVRO KEY FULLNAME') ?? null;
  const valueFullname = texts.get('AVRO VALUE FULLNAME') ?? null;
  if (keyFullname !== null && keyColumns === null) {
    throw millraceError('invalid_option', { message: 'cannot specify AVRO KEY FULLNAME without a corresponding KEY field' });
  }
  if (keyColumns !== null && (keyFullname === null) !== (valueFullname === null)) {
    throw millraceError('invalid_option', {
      message: 'must specify both AVRO KEY FULLNAME and AVRO VALUE FULLNAME when specifying generated schema names',
    });
  }
  for (const [name, text] of texts) {
    if (name.endsWith('FULLNAME') && !/^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$/.test(text)) {
      throw millraceError('invalid_option', {
        message: `invalid ${name}: "${text}"`,
        hint: "Give a full name of Avro: 'com.example.orders'.",
      });
    }
  }
  return {
    kind: 'avro',
    registryId,
    keyFullname,
    valueFullname,
    nullDefaults,
    keyDocs: docs.key,
    valueDocs: docs.value,
    keyCompatibility: level(texts, 'KEY COMPATIBILITY LEVEL'),
    valueCompatibility: level(texts, 'VALUE COMPATIBILITY LEVEL'),
  };
}

function level(texts: ReadonlyMap<string, string>, name: string): string | null {
  const given = texts.get(name)?.toUpperCase();
  if (given === undefined || levels.includes(given)) return given ?? null;
  throw millraceError('invalid_option', {
    message: `invalid ${name}: "${texts.get(name)}"`,
    hint: `The levels are: ${levels.join(', ')}.`,
  });
}

/** What a DOC ON is about: a column, '' for the relation itself. */
function documented(
  name: string,
  place: readonly string[],
  relation: { readonly name: string; readonly columns: readonly string[] },
  position: { readonly position: number },
): string {
  const isColumn = name.endsWith('COLUMN');
  const owner = isColumn ? place.at(-2) : place.at(-1);
  const column = isColumn ? (place.at(-1) ?? '') : '';
  if (owner === relation.name && (!isColumn || relation.columns.includes(column))) return column;
  throw millraceError(
    'invalid_option',
    {
      message: `${name} ${place.join('.')} is about nothing of the sink`,
      hint: `Name the relation, ${relation.name}, or one of its columns: ${relation.columns.join(', ')}.`,
    },
    position,
  );
}
