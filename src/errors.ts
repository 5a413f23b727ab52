/**
 * The one registry of errors that Millrace itself raises: condition -> SQLSTATE, message, hint.
 * Invariant: every error a client sees from Millrace is made here, so that codes and wording are the same everywhere.
 * SQLSTATEs are those of the same condition in Postgres (documentation, appendix A); docs/errors.md is checked against this table.
 */

/** The fields of an ErrorResponse that Millrace fills. `position` counts characters from 1 in the client's query text. */
export interface ErrorFields {
  readonly severity: 'ERROR' | 'FATAL';
  readonly code: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
  readonly position?: number;
}

/** A NoticeResponse that Millrace sends. */
export interface NoticeFields {
  readonly severity: 'NOTICE' | 'WARNING' | 'INFO';
  readonly code: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

interface Condition {
  readonly code: string;
  /** `{name}` places are filled from the parameters. */
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

export const conditions = {
  syntax_error: { code: '42601', message: '{message}' },
  feature_not_supported: { code: '0A000', message: '{message}' },
  internal_error: { code: 'XX000', message: '{message}' },
  in_failed_transaction: { code: '25P02', message: 'current transaction is aborted, commands ignored until end of transaction block' },
  read_only_transaction: { code: '25006', message: 'cannot execute {tag} in a read-only transaction' },
  catalog_not_installable: {
    code: '42501',
    message: 'cannot install the Millrace catalog in database "{database}"',
    detail: '{cause}',
    hint: 'Connect once as a role that may, or run: GRANT CREATE ON DATABASE {database_quoted} TO {role_quoted};',
  },
  upstream_unreachable: {
    code: '08006',
    message: 'could not connect to the upstream server',
    detail: '{cause}',
    hint: 'Check that the server given with --upstream is running and reachable.',
  },
  database_disabled: {
    code: '55000',
    message: 'database "{database}" is not currently accepting connections',
    detail: 'An operator has disabled it in the admin console.',
    hint: 'Type there: ENABLE {database};',
  },
  database_paused: {
    code: '57P03',
    message: 'database "{database}" is paused',
    detail: 'An operator has paused it in the admin console, for longer than query_wait_timeout.',
    hint: 'Connect again later.',
  },
  console_not_allowed: {
    code: '28000',
    message: 'not allowed',
    detail: 'Role "{role}" is neither in admin_users nor in stats_users.',
  },
  console_command_not_allowed: {
    code: '42501',
    message: 'admin access needed',
    detail: 'Role "{role}" is in stats_users: it may only look.',
    hint: 'Add it to admin_users.',
  },
  console_command_unknown: { code: '42601', message: 'invalid command "{command}"', hint: 'SHOW HELP' },
  console_command_failed: { code: '55000', message: '{message}' },
  prepared_statement_unknown: { code: '26000', message: 'prepared statement "{name}" does not exist' },
  portal_unknown: { code: '34000', message: 'portal "{name}" does not exist' },
  query_canceled: { code: '57014', message: 'canceling statement due to user request' },
  administrator_shutdown: { code: '57P01', message: 'terminating connection due to administrator command' },
  transaction_in_statement_pool: {
    code: '08P01',
    message: 'transaction blocks not allowed in statement pooling mode',
    hint: 'Set pool_mode = transaction for this database or role.',
  },
  query_wait_timeout: {
    code: '08P01',
    message: 'query_wait_timeout',
    detail: 'No server connection became free within {seconds} s.',
    hint: 'Raise default_pool_size or query_wait_timeout, or make transactions shorter.',
  },
  too_many_clients: {
    code: '53300',
    message: 'no more connections allowed ({limit} = {value})',
    hint: 'Close connections, or raise {limit}.',
  },
  client_timeout: {
    code: '{code}',
    message: 'terminating connection due to {due}',
    hint: 'The limit is {seconds} s; an operator can change {limit}.',
  },
  protocol_violation: { code: '08P01', message: '{message}', detail: '{detail}' },
  ssl_required: {
    code: '08P01',
    message: 'SSL required',
    hint: 'Connect with sslmode=require, or a stricter mode.',
  },
  client_certificate_required: {
    code: '28000',
    message: 'connection requires a valid client certificate',
    detail: '{problem}',
    hint: 'Connect with sslcert and sslkey: a certificate of an authority that Millrace was told to trust.',
  },
  channel_binding_impossible: {
    code: '28000',
    message: 'SCRAM channel binding cannot hold through Millrace',
    detail: 'The client and the upstream both use TLS, each with Millrace, and the client reported that it supports channel binding.',
    hint: 'Connect with channel_binding=disable, or set auth_file or auth_query so that Millrace can check the password of "{user}" itself.',
  },
  password_authentication_failed: { code: '28P01', message: 'password authentication failed for user "{user}"' },
  certificate_authentication_failed: { code: '28000', message: 'certificate authentication failed for user "{user}"' },
  upstream_login_impossible: {
    code: '28000',
    message: 'cannot log in to the upstream as role "{user}"',
    detail: '{cause}',
    hint: 'Give the password of the role in auth_file, or let the upstream ask for scram-sha-256 where clients of Millrace authenticate with it.',
  },
  undefined_object: { code: '42704', message: '{kind} "{name}" does not exist', hint: 'SHOW {kinds_upper}; lists what there is.' },
  duplicate_object: { code: '42710', message: '{kind} "{name}" already exists' },
  duplicate_relation: {
    code: '42P07',
    message: 'relation "{name}" already exists',
    hint: 'Choose another name or schema, or type CREATE ... IF NOT EXISTS.',
  },
  wrong_object_type: { code: '42809', message: '"{name}" is not a {kind}' },
  wrong_object_type_drop: {
    code: '42809',
    message: '"{name}" is not a {kind}',
    hint: 'Use DROP {actual_upper} {name_quoted}; to remove it.',
  },
  not_owner: {
    code: '42501',
    message: 'must be owner of {kind} {name}',
    detail: 'It belongs to role "{owner}"; the current role is "{role}".',
    hint: 'Act as its owner (SET ROLE {owner_quoted};) or ask for membership: GRANT {owner_quoted} TO ...;',
  },
  no_schema_selected: { code: '3F000', message: 'no schema has been selected to create in', hint: 'Name a schema, or SET search_path.' },
  undefined_schema: { code: '3F000', message: 'schema "{name}" does not exist', hint: 'Type: CREATE SCHEMA {name_quoted};' },
  schema_permission_denied: {
    code: '42501',
    message: 'permission denied for schema {schema}',
    hint: 'Its owner can grant it: GRANT CREATE ON SCHEMA {schema_quoted} TO ...;',
  },
  source_permission_denied: {
    code: '42501',
    message: 'permission denied for source {name}',
    detail: 'Creating a table from a source needs SELECT on the source; the current role is "{role}".',
    hint: 'Its owner can grant it: GRANT SELECT ON {name_quoted} TO {role_quoted};',
  },
  untrusted_function: {
    code: '42501',
    message: 'function {function} cannot be used in a live materialized view',
    detail:
      'Live views are maintained by Millrace itself, so the functions they call must belong to a superuser; this one belongs to "{owner}".',
    hint: 'Have a superuser take it over: ALTER FUNCTION {function} OWNER TO ...;',
  },
  dependent_objects: {
    code: '2BP01',
    message: 'cannot drop {kind} "{name}" because other objects depend on it',
    detail: '{dependents}',
    hint: 'Use DROP ... CASCADE to drop the dependent objects too.',
  },
  invalid_option: { code: '22023', message: '{message}', detail: '{detail}', hint: '{hint}' },
  secret_unreadable: {
    code: '28000',
    message: 'secret "{name}" cannot be decrypted with the current key',
    hint: "Start Millrace with the MILLRACE_SECRET_KEY the secret was created under, or type: ALTER SECRET {name_quoted} AS '...';",
  },
  connection_failed: { code: '08001', message: 'failed to connect to PostgreSQL database', detail: '{cause}', hint: '{hint}' },
  origin_authentication_failed: {
    code: '28P01',
    message: 'failed to connect to PostgreSQL database',
    detail: '{cause}',
    hint: 'Correct the USER of connection "{connection}" or its password: ALTER SECRET ... AS \'...\';',
  },
  origin_password_missing: {
    code: '28P01',
    message: 'failed to connect to PostgreSQL database',
    detail: 'The server asks for the password of "{user}", and connection "{connection}" has none.',
    hint: "Type: CREATE SECRET my_password AS '...'; and give the connection PASSWORD SECRET my_password.",
  },
  wal_level_not_logical: {
    code: '55000',
    message: 'origin server must have wal_level = logical, but has {wal_level}',
    detail: 'Connection "{connection}" leads to {host}:{port}.',
    hint: 'On the origin: ALTER SYSTEM SET wal_level = logical; then restart it.',
  },
  no_free_slot: {
    code: '53400',
    message: 'origin server has no free replication slot',
    detail: 'max_replication_slots is {max} and all are in use.',
    hint: 'Drop a slot that is not needed (see pg_replication_slots on the origin) or raise max_replication_slots.',
  },
  no_free_wal_sender: {
    code: '53300',
    message: 'origin server has no free WAL sender',
    detail: 'max_wal_senders is {max} and all are in use.',
    hint: 'End a replication connection that is not needed (see pg_stat_replication on the origin) or raise max_wal_senders.',
  },
  ambiguous_reference: {
    code: '42P09',
    message: 'reference {reference} is ambiguous',
    detail: 'It could be: {candidates}.',
    hint: 'Name the schema as well: REFERENCE schema.table.',
  },
  no_replication_right: {
    code: '42501',
    message: 'role "{role}" of connection "{connection}" may not replicate',
    detail: 'It has neither the REPLICATION attribute nor superuser on the origin.',
    hint: 'On the origin: ALTER ROLE {role_quoted} REPLICATION;',
  },
  publication_missing: {
    code: '42704',
    message: 'publication "{publication}" does not exist on the origin',
    detail: 'Connection "{connection}" leads to database "{database}" at {host}:{port}.',
    hint: 'On the origin: CREATE PUBLICATION {publication_quoted} FOR ALL TABLES;',
  },
  reference_not_found: {
    code: '42P01',
    message: 'reference to {reference} not found in source "{source}"',
    detail: '{detail}',
    hint: '{hint}',
  },
  table_not_published: {
    code: '42704',
    message: 'table {reference} is not in publication "{publication}"',
    hint: 'On the origin: ALTER PUBLICATION {publication_quoted} ADD TABLE {reference};',
  },
  origin_permission_denied: {
    code: '42501',
    message: 'role "{role}" may not read table {reference} on the origin',
    hint: 'On the origin: GRANT SELECT ON {reference} TO {role_quoted};',
  },
  undefined_origin_column: {
    code: '42703',
    message: 'column "{column}" of origin table {reference} does not exist',
    detail: 'Its columns are: {columns}.',
    hint: '{hint}',
  },
  unsupported_origin_type: {
    code: '0A000',
    message: 'referenced table {reference} uses types that the upstream does not have',
    detail: '{columns}',
    hint: 'Create the type upstream, or type: WITH (TEXT COLUMNS ({names})) to receive the values as text.',
  },
  replica_identity_nothing: {
    code: '55000',
    message: 'origin table {reference} has REPLICA IDENTITY NOTHING',
    hint: 'On the origin: ALTER TABLE {reference} REPLICA IDENTITY FULL;',
  },
  mixed_live_view: {
    code: '0A000',
    message: 'materialized view "{name}" reads both live relations and ordinary tables',
    detail: 'Ordinary: {relations}.',
    hint: 'Bring the ordinary table in through a source (CREATE TABLE .. FROM SOURCE), or leave it out of the view.',
  },
  not_materializable: {
    code: '0A000',
    message: 'cannot materialize call to {function}()',
    detail: 'Its result changes although no row changes, so the view could not equal its query.',
    hint: 'Leave {function}() out of the view and apply it where the view is read.',
  },
  time_not_compared: {
    code: '0A000',
    message: 'cannot materialize call to {function}() but in a comparison',
    detail: 'Rows come and go at known instants only where the time is compared with columns of one relation by <, <=, > or >=.',
    hint: "Compare it, as in WHERE at > now() - interval '1 hour' or mz_now() <= at + interval '1 hour', or leave it out and apply it where the view is read.",
  },
  stream_table_exists: {
    code: '42P07',
    message: 'stream table already exists: {name}',
    hint: 'Use pgtrickle.alter_stream_table() to change it, or pgtrickle.drop_stream_table() first.',
  },
  stream_table_not_found: {
    code: '42P01',
    message: 'stream table not found: {name}',
    hint: 'SELECT * FROM pgtrickle.pgt_status(); lists what there is.',
  },
  stream_table_argument: { code: '22023', message: 'invalid argument: {message}' },
  stream_table_cycle: { code: '3F000', message: 'cycle detected in dependency graph: {path}' },
  unsupported_operator: {
    code: '0A000',
    message: 'unsupported operator for DIFFERENTIAL mode: {message}',
    hint: "Use refresh_mode => 'FULL', or 'AUTO' to let Millrace choose.",
  },
  unsupported_parameter: { code: '0A000', message: 'parameter {name} is not supported', detail: '{detail}', hint: '{hint}' },
  row_security_source: {
    code: '0A000',
    message: 'row-level security of table {name} applies here, so it cannot be a source of a stream table',
    detail: 'A stream table keeps one set of rows for all its readers.',
    hint: '{hint}',
  },
  source_table_unreadable: {
    code: '42501',
    message: 'permission denied for table {name}',
    detail: 'Millrace itself has to read it to keep the stream table.',
    hint: '{hint}',
  },
  undefined_relation: { code: '42P01', message: 'relation "{name}" does not exist' },
  undefined_role: { code: '42704', message: 'role "{name}" does not exist' },
  role_permission_denied: {
    code: '42501',
    message: 'must be able to SET ROLE "{name}"',
    hint: 'A member of the role can grant it: GRANT {name_quoted} TO ...;',
  },
  relation_permission_denied: {
    code: '42501',
    message: 'permission denied for {kind} {name}',
    detail: 'A sink of it needs SELECT; the current role is "{role}".',
    hint: 'Its owner can grant it: GRANT SELECT ON {name_quoted} TO {role_quoted};',
  },
  not_sinkable: { code: '42809', message: '{kind} {name} cannot be exported as a sink', detail: '{detail}', hint: '{hint}' },
  wrong_connection_type: {
    code: '42809',
    message: '"{name}" is not a {type} connection',
    detail: 'It is a {actual} connection.',
    hint: "SHOW CONNECTIONS WHERE type = '{type_lower}';",
  },
  sink_key_required: {
    code: '22023',
    message: '{sinks} must specify a key',
    hint: 'Name the columns that tell rows apart: KEY ({columns}).',
  },
  sink_column_undefined: {
    code: '42703',
    message: 'column referenced in {clause} does not exist: {column}',
    detail: 'The columns of {relation} are: {columns}.',
    hint: '{hint}',
  },
  sink_key_duplicate: { code: '42701', message: 'duplicate column referenced in KEY: {column}' },
  sink_key_unproven: {
    code: '42P10',
    message: 'upsert key could not be validated as unique',
    detail:
      'Millrace could not prove that the specified upsert envelope key ({key}) is a unique key of the underlying relation {relation}. {known}',
    hint: 'Choose columns that contain a known key, or take the responsibility: KEY ({key_quoted}) NOT ENFORCED.',
  },
  sink_key_changed: {
    code: '42804',
    message: 'key column "{column}" is of type {type} in {relation} but of type {before} in the present relation of the sink',
    hint: 'Cast it in the view, or create another sink.',
  },
  sink_column_type: {
    code: '0A000',
    message: '{format} cannot hold column "{column}" of type {type}',
    detail: '{detail}',
    hint: '{hint}',
  },
  kafka_failed: { code: '08001', message: 'failed to connect to Kafka', detail: '{cause}', hint: '{hint}' },
  kafka_authentication_failed: {
    code: '28P01',
    message: 'failed to connect to Kafka',
    detail: '{cause}',
    hint: 'Correct SASL MECHANISMS, SASL USERNAME or SASL PASSWORD of connection "{connection}".',
  },
  registry_failed: { code: '08001', message: 'failed to connect to the schema registry', detail: '{cause}', hint: '{hint}' },
  registry_authentication_failed: {
    code: '28P01',
    message: 'failed to connect to the schema registry',
    detail: '{cause}',
    hint: 'Correct USERNAME or PASSWORD of connection "{connection}".',
  },
  registry_incompatible: {
    code: '42P17',
    message: 'schema being registered is incompatible with an earlier schema',
    detail: 'Subject "{subject}": {cause}',
    hint: "Change the relation's columns, or the compatibility level of the subject in the registry.",
  },
  sink_relation_failed: {
    code: '55000',
    message: 'sink "{sink}" cannot read {relation}',
    detail: '{cause}',
    hint: '{hint}',
  },
  sink_relation_not_ready: {
    code: '57014',
    message: 'timed out after {seconds} s before {relation} could be read',
    detail: 'Its state is "{state}". Nothing was changed.',
    hint: "SELECT * FROM millrace.snapshot_progress; says how far it is. Give it longer: ALTER SINK .. SET FROM .. WITH (TIMEOUT = '10min');",
  },
  sink_altered_concurrently: {
    code: '55006',
    message: 'sink "{name}" was altered concurrently',
    detail: 'Its cutover to {relation} is still under way.',
    hint: 'Wait for it: SELECT relation, next_relation, status, error FROM millrace.sinks;',
  },
  sink_cutover_pending: {
    code: '55006',
    message: 'sink {sink} still reads {kind} {name} until its cutover',
    hint: 'Wait until next_relation of it is empty in millrace.sinks, or type: DROP SINK {sink};',
  },
  sink_start_failed: { code: '55000', message: 'sink "{name}" could not be started', detail: '{cause}', hint: '{hint}' },
  not_subscribable: { code: '42809', message: 'cannot subscribe to {kind} {name}', detail: '{detail}', hint: '{hint}' },
  subscription_isolation: {
    code: '25001',
    message: 'SUBSCRIBE cannot be executed in a {level} transaction',
    detail: 'All statements of such a transaction see one snapshot, in which nothing changes any more.',
    hint: 'BEGIN ISOLATION LEVEL READ COMMITTED;',
  },
  subscription_order: {
    code: '42P10',
    message: 'invalid ORDER BY in SUBSCRIBE WITHIN TIMESTAMP ORDER BY',
    detail: '{cause}',
    hint: 'The columns are: {columns}.',
  },
  subscription_key: {
    code: '42703',
    message: 'invalid keys in SUBSCRIBE ENVELOPE {envelope} (KEY (..))',
    detail: '{cause}',
    hint: 'The columns are: {columns}.',
  },
  subscription_timestamp: {
    code: '22023',
    message: 'AS OF or UP TO should be castable to a (non-null) mz_timestamp value',
    detail: 'It is {value}.',
    hint: 'Give milliseconds as in mz_timestamp, or a time; millrace.now() is the present.',
  },
  subscription_bounds: {
    code: '22023',
    message: 'subscription lower bound (`AS OF`) is greater than its upper bound (`UP TO`): {as_of} > {up_to}',
  },
  subscription_no_history: {
    code: '22023',
    message: 'could not find a valid timestamp for the query',
    detail: 'Constraints: AS OF {as_of}; changes of {relation} are kept after {since}.',
    hint: 'To go on from a position later, read through a durable subscription: CREATE DURABLE SUBSCRIPTION my_reader FOR {relation};',
  },
  subscription_query_history: {
    code: '0A000',
    message: 'SUBSCRIBE (query) cannot begin in the past',
    hint: 'Create a materialized view with the query and a durable subscription for it, or leave AS OF out.',
  },
  subscription_too_large: {
    code: '54000',
    message: 'the result of the query is too large to subscribe to',
    detail: 'It has more than {limit}, which Millrace would have to hold in memory.',
    hint: 'CREATE MATERIALIZED VIEW my_view AS .. with the query, and SUBSCRIBE TO my_view.',
  },
  subscription_relation_new: {
    code: '55000',
    message: 'cannot subscribe to {name} in the transaction that created it',
    hint: 'COMMIT first.',
  },
  subscription_relation_gone: { code: '42P01', message: 'relation {name}, which is subscribed to, was dropped' },
  subscription_relation_failed: { code: '55000', message: 'subscription cannot read {name}', detail: '{cause}', hint: '{hint}' },
  subscription_permission_denied: {
    code: '42501',
    message: 'permission denied for {kind} {name}',
    detail: 'Subscribing to it needs SELECT; the current role is "{role}".',
    hint: 'Its owner can grant it: GRANT SELECT ON {name_quoted} TO {role_quoted};',
  },
  subscription_taken: { code: '55006', message: 'subscription to {name} was taken over by another session' },
  subscription_overrun: {
    code: '55000',
    message: 'subscription to {name} has fallen too far behind',
    detail: 'The changes it has still to read had grown to the limit and were thrown away.',
    hint: '{hint}',
  },
  durable_subscription_unknown: {
    code: '42704',
    message: 'durable subscription "{name}" does not exist',
    hint: 'SELECT * FROM millrace.subscriptions; lists what there is.',
  },
  durable_subscription_exists: { code: '42710', message: 'durable subscription "{name}" already exists' },
  durable_subscription_relation_gone: {
    code: '42P01',
    message: 'the relation of durable subscription "{name}" was dropped',
    detail: 'Nothing more comes of it, and what had not been read is gone with {relation}.',
    hint: 'DROP DURABLE SUBSCRIPTION {quoted}; and, to read the relation that took its place, from all of its rows on: CREATE DURABLE SUBSCRIPTION {quoted} FOR ..;',
  },
  durable_subscription_ahead: {
    code: '22023',
    message: 'cannot acknowledge durable subscription "{name}" up to {up_to}',
    detail: '{detail}',
    hint: 'Acknowledge what was read: a timestamp of a progress row, or mz_timestamp + 1 once all rows with that mz_timestamp are there.',
  },
  subscription_copy_option: { code: '0A000', message: 'COPY (SUBSCRIBE ..) does not support {option}', hint: '{hint}' },
  migration_refused: { code: '{code}', message: '{message}', detail: '{detail}', hint: '{hint}' },
  migration_table_changed: {
    code: '40001',
    message: 'table {table} was altered concurrently',
    hint: 'Type the statement again.',
  },
  migration_not_now: { code: '{code}', message: '{message}', detail: '{detail}', hint: '{hint}' },
  population_failed: { code: '{code}', message: '{message}', detail: '{detail}', hint: '{hint}' },
} as const satisfies Record<string, Condition>;

export type ConditionName = keyof typeof conditions;

/** An error to be shown to a client. Made by `millraceError`, never directly. */
export class MillraceError extends Error {
  readonly condition: ConditionName;
  readonly fields: ErrorFields;
  constructor(condition: ConditionName, fields: ErrorFields, options?: ErrorOptions) {
    super(fields.message, options);
    this.name = 'MillraceError';
    this.condition = condition;
    this.fields = fields;
  }
}

/**
 * An error of the registry with its places filled in.
 * A DETAIL or HINT whose places are all left empty is not sent. `position` is 1-based in characters of the client's query.
 */
export function millraceError(
  condition: ConditionName,
  parameters: Readonly<Record<string, string | number>> = {},
  options: { readonly position?: number; readonly cause?: unknown } = {},
): MillraceError {
  const entry: Condition = conditions[condition];
  const fill = (text: string): string => text.replace(/\{(\w+)\}/g, (_, key: string) => String(parameters[key] ?? ''));
  const optional = (text: string | undefined): string | undefined => (text === undefined ? undefined : fill(text).trim() || undefined);
  const detail = optional(entry.detail);
  const hint = optional(entry.hint);
  return new MillraceError(
    condition,
    {
      severity: 'ERROR',
      code: fill(entry.code),
      message: fill(entry.message),
      ...(detail === undefined ? {} : { detail }),
      ...(hint === undefined ? {} : { hint }),
      ...(options.position === undefined ? {} : { position: options.position }),
    },
    options.cause === undefined ? undefined : { cause: options.cause },
  );
}
