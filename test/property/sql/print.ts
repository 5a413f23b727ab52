/**
 * Extended statements as tokens, for the round trip through the grammar.
 * Invariant: written from the syntax in grammar/README.md, independently of the grammar itself.
 */
import type {
  AvroOption,
  CreateSink,
  ExtendedStatement,
  FormatClause,
  Identifier,
  MigrationChange,
  MigrationOption,
  Option,
  OptionValue,
  QualifiedName,
  SinkAction,
  Subscribe,
} from '../../../src/sql/ast.ts';
import { quoteIdentifier, quoteLiteral } from '../../../src/sql/quote.ts';

const plain = (identifier: Identifier): string => quoteIdentifier(identifier.name);
const qualified = ({ schema, name }: QualifiedName): string[] =>
  schema === null ? [quoteIdentifier(name)] : [quoteIdentifier(schema), '.', quoteIdentifier(name)];

function list(items: readonly (readonly string[])[]): string[] {
  return items.flatMap((item, i) => (i === 0 ? [...item] : [',', ...item]));
}

function value(of: OptionValue): string[] {
  switch (of.kind) {
    case 'string':
      return [quoteLiteral(of.value)];
    case 'number':
      return [String(of.value)];
    case 'boolean':
      return ['=', of.value ? 'True' : 'FALSE'];
    case 'identifier':
      return ['=', ...qualified(of.name)];
    case 'secret':
      return ['SECRET', ...qualified(of.name)];
    case 'list':
      return ['(', ...list(of.values.map((text) => [quoteLiteral(text)])), ')'];
    case 'map':
      return ['=', 'MAP', '[', ...list(of.entries.map(([key, text]) => [quoteLiteral(key), '=>', quoteLiteral(text)])), ']'];
    case 'expression':
      return ['=', of.text];
  }
}

const option = (of: Option): string[] => [...of.name.toLowerCase().split(' '), ...value(of.value)];
const when = (condition: boolean, ...tokens: readonly string[]): readonly string[] => (condition ? tokens : []);
const validate = (given: boolean | null): readonly string[] => when(given !== null, 'WITH', '(', 'VALIDATE', '=', String(given), ')');
const columns = (label: string, of: readonly Identifier[]): string[][] =>
  of.length === 0 ? [] : [[label, 'COLUMNS', '(', ...list(of.map((c) => [plain(c)])), ')']];

function subscribe(of: Subscribe): string[] {
  const { target } = of;
  const what = {
    relation: () => ['TO', ...(target.kind === 'query' ? [] : qualified(target.name))],
    durable: () => ['USING', 'DURABLE', 'SUBSCRIPTION', ...(target.kind === 'query' ? [] : qualified(target.name))],
    query: () => ['(', target.kind === 'query' ? target.query.text : '', ')'],
  };
  const key = of.envelope?.key ?? [];
  const modes = [
    ...when(of.snapshot !== null, 'SNAPSHOT', '=', String(of.snapshot)),
    ...when(of.snapshot !== null && of.progress, ','),
    ...when(of.progress, 'PROGRESS'),
  ];
  return [
    ...['SUBSCRIBE', ...what[target.kind]()],
    ...when(
      of.envelope !== null,
      'ENVELOPE',
      (of.envelope?.kind ?? '').toUpperCase(),
      '(',
      'KEY',
      '(',
      ...list(key.map((c) => [plain(c)])),
      ')',
      ')',
    ),
    ...when(of.orderBy !== null, 'WITHIN', 'TIMESTAMP', 'ORDER', 'BY', of.orderBy?.text ?? ''),
    ...when(modes.length > 0, 'WITH', '(', ...modes, ')'),
    ...when(of.asOf !== null, 'AS', 'OF', ...when(of.asOf?.atLeast === true, 'AT', 'LEAST'), of.asOf?.text ?? ''),
    ...when(of.upTo !== null, 'UP', 'TO', of.upTo?.text ?? ''),
  ];
}

/** The tokens of a statement; any blanks may go between them. */
export function printStatement(of: ExtendedStatement): string[] {
  switch (of.type) {
    case 'mentions_pgtrickle':
      return ['SELECT', '*', 'FROM', 'pgtrickle', '.', 'pgt_stream_tables'];
    case 'create_secret':
      return ['CREATE', 'SECRET', ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS'), ...qualified(of.name), 'AS', quoteLiteral(of.value)];
    case 'alter_secret':
      return ['alter', 'secret', ...when(of.ifExists, 'if', 'exists'), ...qualified(of.name), 'as', quoteLiteral(of.value)];
    case 'create_connection':
      return [
        ...['CREATE', 'CONNECTION', ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS'), ...qualified(of.name), 'TO'],
        ...of.target.toUpperCase().split(' '),
        ...['(', ...list(of.options.map(option)), ')', ...validate(of.validate)],
      ];
    case 'alter_connection': {
      const actions = [
        ...(of.set.length === 0 ? [] : [['SET', '(', ...list(of.set.map(option)), ')']]),
        ...of.reset.map((name, i) => [i % 2 === 0 ? 'DROP' : 'RESET', '(', ...name.split(' '), ')']),
      ];
      return [
        'ALTER',
        'CONNECTION',
        ...when(of.ifExists, 'IF', 'EXISTS'),
        ...qualified(of.name),
        ...list(actions),
        ...validate(of.validate),
      ];
    }
    case 'validate_connection':
      return ['VALIDATE', 'CONNECTION', ...qualified(of.name)];
    case 'create_source':
      return [
        ...['CREATE', 'SOURCE', ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS'), ...qualified(of.name), 'FROM', 'POSTGRES'],
        ...['CONNECTION', ...qualified(of.connection), '(', 'PUBLICATION', quoteLiteral(of.publication), ')'],
        ...when(of.autoResync, 'WITH', '(', 'AUTO', 'RESYNC', ')'),
      ];
    case 'alter_source':
      return [
        ...['ALTER', 'SOURCE', ...when(of.ifExists, 'IF', 'EXISTS'), ...qualified(of.name)],
        ...(of.autoResync === null ? ['RESYNC'] : ['SET', '(', 'AUTO', 'RESYNC', '=', String(of.autoResync), ')']),
      ];
    case 'create_table_from_source': {
      const options = [...columns('TEXT', of.textColumns), ...columns('EXCLUDE', of.excludeColumns)];
      const reference =
        of.reference === null
          ? []
          : ['(', 'REFERENCE', '=', ...of.reference.parts.flatMap((p, i) => [...when(i > 0, '.'), quoteIdentifier(p)]), ')'];
      return [
        ...[
          'CREATE',
          'TABLE',
          ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS'),
          ...qualified(of.name),
          'FROM',
          'SOURCE',
          ...qualified(of.source),
        ],
        ...[...reference, ...when(options.length > 0, 'WITH', '(', ...list(options), ')')],
      ];
    }
    case 'subscribe':
      return subscribe(of);
    case 'copy_subscribe':
      return [
        'COPY',
        '(',
        ...subscribe(of.subscribe),
        ')',
        'TO',
        'STDOUT',
        ...when(of.options.length > 0, 'WITH', '(', ...list(of.options.map((one) => [one.name, ...value(one.value)])), ')'),
      ];
    case 'declare_subscription':
      return ['DECLARE', plain(of.cursor), 'CURSOR', 'FOR', ...subscribe(of.subscribe)];
    case 'fetch_subscription':
      return [
        'FETCH',
        of.count === null ? 'ALL' : String(of.count),
        'FROM',
        plain(of.cursor),
        ...when(of.timeout !== null, 'WITH', '(', 'TIMEOUT', quoteLiteral(of.timeout ?? ''), ')'),
      ];
    case 'close_subscription':
      return ['CLOSE', of.cursor === null ? 'ALL' : plain(of.cursor)];
    case 'create_durable_subscription':
      return [
        ...['CREATE', 'DURABLE', 'SUBSCRIPTION', ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS')],
        ...qualified(of.name),
        'FOR',
        ...qualified(of.relation),
      ];
    case 'acknowledge_durable_subscription':
      return ['ACKNOWLEDGE', 'DURABLE', 'SUBSCRIPTION', ...qualified(of.name), 'UP', 'TO', of.upTo.text];
    case 'drop_durable_subscription':
      return ['DROP', 'DURABLE', 'SUBSCRIPTION', ...when(of.ifExists, 'IF', 'EXISTS'), ...list(of.names.map(qualified))];
    case 'create_sink':
      return createSink(of);
    case 'alter_sink':
      return ['ALTER', 'SINK', ...when(of.ifExists, 'IF', 'EXISTS'), ...qualified(of.name), ...sinkAction(of.action)];
    case 'create_migration':
      return [
        ...['CREATE', 'MIGRATION', ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS'), plain(of.name)],
        ...migrationChange(of.change),
        ...when(of.options.length > 0, 'WITH', '(', ...list(of.options.map(migrationOption)), ')'),
      ];
    case 'explain_migration':
      return ['EXPLAIN', ...printStatement(of.migration)];
    case 'alter_migration':
      return [
        ...['ALTER', 'MIGRATION', ...when(of.ifExists, 'IF', 'EXISTS'), plain(of.name)],
        ...(of.action.kind === 'set' ? ['SET', '(', ...list(of.action.options.map(migrationOption)), ')'] : [of.action.kind]),
      ];
    case 'create_materialized_view':
      return [
        ...['CREATE', 'MATERIALIZED', 'VIEW', ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS'), ...qualified(of.name)],
        ...when(of.columns !== null, '(', ...list((of.columns ?? []).map((c) => [quoteIdentifier(c)])), ')'),
        ...['AS', of.query, ...when(!of.withData, 'WITH', 'NO', 'DATA')],
      ];
    case 'refresh_materialized_view':
      return ['REFRESH', 'MATERIALIZED', 'VIEW', ...qualified(of.name)];
    case 'alter_schema_swap':
      return ['ALTER', 'SCHEMA', ...when(of.ifExists, 'IF', 'EXISTS'), plain(of.a), 'SWAP', 'WITH', plain(of.b)];
    case 'drop_object':
    case 'drop_relation':
      return [
        'DROP',
        ...of.kind.split(' '),
        ...when(of.ifExists, 'IF', 'EXISTS'),
        ...list(of.names.map(qualified)),
        ...when(of.cascade, 'CASCADE'),
      ];
    case 'drop_schema':
      return [
        'DROP',
        'SCHEMA',
        ...when(of.ifExists, 'IF', 'EXISTS'),
        ...list(of.names.map((n) => [plain(n)])),
        ...when(of.cascade, 'CASCADE'),
      ];
    case 'show_objects':
      return [
        ...['SHOW', ...of.kind.split(' '), ...(of.schema === null ? [] : ['FROM', plain(of.schema)])],
        ...(of.source === null ? [] : ['ON', ...qualified(of.source)]),
        ...(of.like === null ? [] : ['LIKE', quoteLiteral(of.like)]),
        ...(of.where === null ? [] : ['WHERE', of.where]),
      ];
    case 'show_create':
      return ['SHOW', 'CREATE', ...of.kind.split(' '), ...qualified(of.name)];
  }
}

function createSink(of: CreateSink): string[] {
  const { target, key, headers, keyFormat, format, envelope, snapshot } = of;
  return [
    ...['CREATE', 'SINK', ...when(of.ifNotExists, 'IF', 'NOT', 'EXISTS'), ...qualified(of.name), 'FROM', ...qualified(of.from), 'INTO'],
    ...(target.kind === 'webhook' ? ['webhook'] : [target.kind, 'CONNECTION', ...qualified(target.connection)]),
    ...['(', ...list(target.options.map(option)), ')'],
    ...(key === null ? [] : ['KEY', '(', ...list(key.columns.map((c) => [plain(c)])), ')', ...when(!key.enforced, 'NOT', 'ENFORCED')]),
    ...(headers === null ? [] : ['HEADERS', plain(headers)]),
    ...(keyFormat === null ? [] : ['KEY', 'FORMAT', ...formatClause(keyFormat), 'VALUE']),
    ...(format === null ? [] : ['FORMAT', ...formatClause(format)]),
    ...(envelope === null ? [] : ['ENVELOPE', envelope]),
    ...(snapshot === null ? [] : ['WITH', '(', 'SNAPSHOT', '=', String(snapshot), ')']),
  ];
}

function migrationChange(of: MigrationChange): string[] {
  switch (of.kind) {
    case 'move':
      return [
        ...['MOVE', 'COLUMNS', '(', ...list(of.columns.map((c) => [plain(c)])), ')', 'FROM', ...qualified(of.table)],
        ...['TO', 'TABLE', ...qualified(of.target), 'KEY', '('],
        ...list(of.key.map(({ column, as }) => [plain(column), ...when(as.name !== column.name, 'AS', plain(as))])),
        ...[')', 'ABSENT', 'WHEN', 'NULL'],
      ];
    case 'alter':
      return [
        ...['ALTER', 'TABLE', ...qualified(of.table)],
        ...list(
          of.columns.map(({ column, type, up, down }) => [
            ...['ALTER', 'COLUMN', plain(column), 'TYPE', type.text],
            ...(up === null ? [] : ['USING', up.text]),
            ...(down === null ? [] : ['REVERT', 'USING', down.text]),
          ]),
        ),
      ];
    case 'split':
      return [
        ...['SPLIT', 'COLUMN', ...qualified(of.table), '.', plain(of.column), 'INTO', '('],
        ...list(of.into.map((part) => [plain(part.name), part.type.text, 'AS', part.up.text])),
        ...[')', 'DOWN', '(', of.down.text, ')'],
      ];
  }
}

function migrationOption({ option: name, value: given }: MigrationOption): string[] {
  return [...name.split(' '), '=', /version$/.test(name) ? quoteIdentifier(given) : quoteLiteral(given)];
}

function formatClause(of: FormatClause): string[] {
  if (of.kind !== 'avro') return [of.kind];
  const options = of.options.length === 0 ? [] : ['(', ...list(of.options.map(avroOption)), ')'];
  return ['AVRO', 'USING', 'CONFLUENT', 'SCHEMA', 'REGISTRY', 'CONNECTION', ...qualified(of.registry), ...options];
}

function avroOption(of: AvroOption): string[] {
  const place = (of.place ?? []).flatMap((part, i) => [...when(i > 0, '.'), quoteIdentifier(part)]);
  return [...of.name.split(' '), ...place, ...value(of.value)];
}

function sinkAction(of: SinkAction): string[] {
  switch (of.kind) {
    case 'set_from': {
      const options = [
        ...(of.backfill === 'none' ? [] : [['BACKFILL', '=', of.backfill]]),
        ...(of.timeout === null ? [] : [['TIMEOUT', quoteLiteral(of.timeout)]]),
        ...(of.dryRun ? [['DRY', 'RUN']] : []),
      ];
      return ['SET', 'FROM', ...qualified(of.from), ...when(options.length > 0, 'WITH', '(', ...list(options), ')')];
    }
    case 'rename':
      return ['RENAME', 'TO', plain(of.to)];
    case 'owner':
      return ['OWNER', 'TO', of.to.name === null ? of.to.keyword : quoteIdentifier(of.to.name)];
    case 'pause':
    case 'resume':
      return [of.kind];
  }
}
