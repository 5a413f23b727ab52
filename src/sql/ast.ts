/**
 * The extended statements as data. Made by the grammar (grammar/millrace.peggy), read by statements/.
 * `at` is the 0-based offset of a name in the text of its own statement, for error positions. All offsets are UTF-16 units, so that
 * they slice; `characterPosition` of lexer.ts turns one into a position on the wire, which counts code points.
 */

/** An identifier after case folding. */
export interface Identifier {
  readonly name: string;
  readonly at: number;
}

/** `schema.name` or `name` (schema null: found along search_path). */
export interface QualifiedName {
  readonly schema: string | null;
  readonly name: string;
  readonly at: number;
}

export type OptionValue =
  | { readonly kind: 'string'; readonly value: string }
  | { readonly kind: 'number'; readonly value: number }
  | { readonly kind: 'boolean'; readonly value: boolean }
  | { readonly kind: 'identifier'; readonly name: QualifiedName }
  | { readonly kind: 'secret'; readonly name: QualifiedName }
  | { readonly kind: 'list'; readonly values: readonly string[] }
  /** MAP['k' => 'v', ..] */
  | { readonly kind: 'map'; readonly entries: readonly (readonly [string, string])[] }
  /** Text of an expression of Postgres's. */
  | { readonly kind: 'expression'; readonly text: string; readonly at: number };

/** `NAME [=] value`; `name` is upper case with single spaces ("SSL MODE"). */
export interface Option {
  readonly name: string;
  readonly value: OptionValue;
  readonly at: number;
}

export interface CreateSecret {
  readonly type: 'create_secret';
  readonly ifNotExists: boolean;
  readonly name: QualifiedName;
  readonly value: string;
}
export interface AlterSecret {
  readonly type: 'alter_secret';
  readonly ifExists: boolean;
  readonly name: QualifiedName;
  readonly value: string;
}
export type ConnectionTarget = 'postgres' | 'kafka' | 'confluent schema registry';
export interface CreateConnection {
  readonly type: 'create_connection';
  readonly ifNotExists: boolean;
  readonly name: QualifiedName;
  readonly target: ConnectionTarget;
  readonly options: readonly Option[];
  /** WITH (VALIDATE = bool); null when not given (means true). */
  readonly validate: boolean | null;
}
export interface AlterConnection {
  readonly type: 'alter_connection';
  readonly ifExists: boolean;
  readonly name: QualifiedName;
  readonly set: readonly Option[];
  /** Option names of DROP (..) and RESET (..). */
  readonly reset: readonly string[];
  readonly validate: boolean | null;
}
export interface ValidateConnection {
  readonly type: 'validate_connection';
  readonly name: QualifiedName;
}
export interface CreateSource {
  readonly type: 'create_source';
  readonly ifNotExists: boolean;
  readonly name: QualifiedName;
  readonly connection: QualifiedName;
  readonly publication: string;
  /** WITH (AUTO RESYNC). */
  readonly autoResync: boolean;
}
export interface AlterSource {
  readonly type: 'alter_source';
  readonly ifExists: boolean;
  readonly name: QualifiedName;
  /** SET or RESET (AUTO RESYNC); null: RESYNC, now. */
  readonly autoResync: boolean | null;
}
export interface CreateTableFromSource {
  readonly type: 'create_table_from_source';
  readonly ifNotExists: boolean;
  readonly name: QualifiedName;
  readonly source: QualifiedName;
  /** The origin table; parts as written after folding: [table], [schema, table] or [database, schema, table]. Null when REFERENCE is left out (the table's own name is used). */
  readonly reference: { readonly parts: readonly string[]; readonly at: number } | null;
  readonly excludeColumns: readonly Identifier[];
  readonly textColumns: readonly Identifier[];
}
/** An option of FORMAT AVRO. `place`: what DOC ON TYPE and DOC ON COLUMN name, part by part; null for the others. */
export interface AvroOption extends Option {
  readonly place: readonly string[] | null;
}
export type FormatClause =
  | { readonly kind: 'json' | 'text' | 'bytes'; readonly at: number }
  | { readonly kind: 'avro'; readonly registry: QualifiedName; readonly options: readonly AvroOption[]; readonly at: number };
export type SinkTargetClause =
  | { readonly kind: 'kafka' | 'postgres'; readonly connection: QualifiedName; readonly options: readonly Option[] }
  | { readonly kind: 'webhook'; readonly connection: null; readonly options: readonly Option[] };
export interface CreateSink {
  readonly type: 'create_sink';
  readonly ifNotExists: boolean;
  readonly name: QualifiedName;
  readonly from: QualifiedName;
  readonly target: SinkTargetClause;
  readonly key: { readonly columns: readonly Identifier[]; readonly enforced: boolean } | null;
  readonly headers: Identifier | null;
  /** KEY FORMAT; null with FORMAT, which is both's. */
  readonly keyFormat: FormatClause | null;
  /** FORMAT, or VALUE FORMAT; null when not given. */
  readonly format: FormatClause | null;
  readonly envelope: 'upsert' | 'debezium' | null;
  /** WITH (SNAPSHOT = bool); null when not given (means true). */
  readonly snapshot: boolean | null;
}
/** A role as ALTER .. OWNER TO names it: by a keyword, in lower case, or a name. */
export type RoleName =
  | { readonly keyword: 'current_user' | 'session_user'; readonly name: null; readonly at: number }
  | { readonly keyword: null; readonly name: string; readonly at: number };
export interface SetFrom {
  readonly kind: 'set_from';
  readonly from: QualifiedName;
  readonly backfill: 'none' | 'snapshot' | 'diff';
  /** An interval; null when not given. */
  readonly timeout: string | null;
  readonly dryRun: boolean;
}
export type SinkAction =
  | SetFrom
  | { readonly kind: 'rename'; readonly to: Identifier }
  | { readonly kind: 'owner'; readonly to: RoleName }
  | { readonly kind: 'pause' | 'resume' };
export interface AlterSink {
  readonly type: 'alter_sink';
  readonly ifExists: boolean;
  readonly name: QualifiedName;
  readonly action: SinkAction;
}
/** MOVE COLUMNS .. ABSENT WHEN NULL; ALTER TABLE .. ALTER COLUMN .. TYPE; SPLIT COLUMN. */
export type MigrationChange =
  | {
      readonly kind: 'move';
      readonly table: QualifiedName;
      readonly columns: readonly Identifier[];
      readonly target: QualifiedName;
      /** `as` is `column` where no other name was given. */
      readonly key: readonly { readonly column: Identifier; readonly as: Identifier }[];
    }
  | {
      readonly kind: 'alter';
      readonly table: QualifiedName;
      /** USING and REVERT USING. */
      readonly columns: readonly {
        readonly column: Identifier;
        readonly type: ExpressionText;
        readonly up: ExpressionText | null;
        readonly down: ExpressionText | null;
      }[];
    }
  | {
      readonly kind: 'split';
      readonly table: QualifiedName;
      readonly column: Identifier;
      readonly into: readonly { readonly name: Identifier; readonly type: ExpressionText; readonly up: ExpressionText }[];
      readonly down: ExpressionText;
    };
/** Of CREATE MIGRATION .. WITH and ALTER MIGRATION .. SET: each at most once. The words of CUTOVER and NONE are in lower case. */
export interface MigrationOption {
  readonly option: 'cutover' | 'lock timeout' | 'max hold' | 'reverse window' | 'max lag' | 'chunk' | 'new version' | 'old version';
  readonly value: string;
  readonly at: number;
}
export interface CreateMigration {
  readonly type: 'create_migration';
  readonly ifNotExists: boolean;
  readonly name: Identifier;
  readonly change: MigrationChange;
  readonly options: readonly MigrationOption[];
}
/** EXPLAIN CREATE MIGRATION */
export interface ExplainMigration {
  readonly type: 'explain_migration';
  readonly migration: CreateMigration;
}
export type MigrationAction =
  | { readonly kind: 'pause' | 'resume' | 'verify' | 'cutover' | 'revert' | 'finalize' | 'cancel' }
  | { readonly kind: 'set'; readonly options: readonly MigrationOption[] };
export interface AlterMigration {
  readonly type: 'alter_migration';
  readonly ifExists: boolean;
  readonly name: Identifier;
  readonly action: MigrationAction;
}
/** Candidate: extended only when the query reads a live relation. */
export interface CreateMaterializedView {
  readonly type: 'create_materialized_view';
  readonly ifNotExists: boolean;
  readonly name: QualifiedName;
  readonly columns: readonly string[] | null;
  /** Text of the query, without WITH [NO] DATA and without a trailing semicolon; begins at `queryAt`. */
  readonly query: string;
  readonly queryAt: number;
  readonly withData: boolean;
}
/** Candidate: only when the name is a live relation. */
export interface RefreshMaterializedView {
  readonly type: 'refresh_materialized_view';
  readonly name: QualifiedName;
}
export interface AlterSchemaSwap {
  readonly type: 'alter_schema_swap';
  readonly ifExists: boolean;
  readonly a: Identifier;
  readonly b: Identifier;
}
/** DROP SECRET, CONNECTION, SOURCE, SINK: always extended. */
export interface DropObject {
  readonly type: 'drop_object';
  readonly kind: 'secret' | 'connection' | 'source' | 'sink';
  readonly ifExists: boolean;
  readonly names: readonly QualifiedName[];
  readonly cascade: boolean;
}
/** Candidate: DROP TABLE, VIEW, MATERIALIZED VIEW: only when a name is a live relation, or when live relations hang on what is dropped. */
export interface DropRelation {
  readonly type: 'drop_relation';
  readonly kind: 'table' | 'view' | 'materialized view';
  readonly ifExists: boolean;
  readonly names: readonly QualifiedName[];
  readonly cascade: boolean;
}
/** Candidate: DROP SCHEMA, only when live relations are in it or hang on it. */
export interface DropSchema {
  readonly type: 'drop_schema';
  readonly ifExists: boolean;
  readonly names: readonly Identifier[];
  readonly cascade: boolean;
}
export type ShowKind = 'sources' | 'sinks' | 'tables' | 'materialized views' | 'connections' | 'secrets' | 'migrations';
export interface ShowObjects {
  readonly type: 'show_objects';
  readonly kind: ShowKind;
  /** FROM schema */
  readonly schema: Identifier | null;
  /** SHOW TABLES ON source */
  readonly source: QualifiedName | null;
  readonly like: string | null;
  /** Text of the WHERE expression. */
  readonly where: string | null;
}
export interface ShowCreate {
  readonly type: 'show_create';
  readonly kind: 'source' | 'sink' | 'table' | 'materialized view' | 'connection' | 'migration';
  readonly name: QualifiedName;
}

/** An expression of Postgres's by its text, and where that begins. */
export interface ExpressionText {
  readonly text: string;
  readonly at: number;
}
export type SubscribeTarget =
  | { readonly kind: 'relation' | 'durable'; readonly name: QualifiedName }
  | { readonly kind: 'query'; readonly query: ExpressionText };
export interface Subscribe {
  readonly type: 'subscribe';
  readonly target: SubscribeTarget;
  readonly envelope: { readonly kind: 'upsert' | 'debezium'; readonly key: readonly Identifier[] } | null;
  /** WITHIN TIMESTAMP ORDER BY */
  readonly orderBy: ExpressionText | null;
  /** null when not given. */
  readonly snapshot: boolean | null;
  readonly progress: boolean;
  readonly asOf: (ExpressionText & { readonly atLeast: boolean }) | null;
  readonly upTo: ExpressionText | null;
}
/** COPY (SUBSCRIBE ..) TO STDOUT */
export interface CopySubscribe {
  readonly type: 'copy_subscribe';
  readonly subscribe: Subscribe;
  readonly options: readonly Option[];
}
/** DECLARE .. CURSOR FOR SUBSCRIBE */
export interface DeclareSubscription {
  readonly type: 'declare_subscription';
  readonly cursor: Identifier;
  readonly subscribe: Subscribe;
}
/** Candidate: only of a cursor over a subscription, and only looked for in a session that has one. */
export interface FetchSubscription {
  readonly type: 'fetch_subscription';
  readonly cursor: Identifier;
  /** null: ALL; negative: backwards. */
  readonly count: number | null;
  /** An interval; null when not given. */
  readonly timeout: string | null;
  /** MOVE: nobody wants the rows. */
  readonly move: boolean;
}
/** The same. `cursor` null: ALL. */
export interface CloseSubscription {
  readonly type: 'close_subscription';
  readonly cursor: Identifier | null;
}
export interface CreateDurableSubscription {
  readonly type: 'create_durable_subscription';
  readonly ifNotExists: boolean;
  readonly name: QualifiedName;
  readonly relation: QualifiedName;
}
export interface AcknowledgeDurableSubscription {
  readonly type: 'acknowledge_durable_subscription';
  readonly name: QualifiedName;
  readonly upTo: ExpressionText;
}
export interface DropDurableSubscription {
  readonly type: 'drop_durable_subscription';
  readonly ifExists: boolean;
  readonly names: readonly QualifiedName[];
}

/**
 * Candidate: a statement of Postgres's that mentions pgtrickle, by its text: Millrace's only when it calls a function that Millrace
 * has a part in (sql/pgtrickle.ts tells). The upstream gives the answer in any case.
 */
export interface MentionsPgtrickle {
  readonly type: 'mentions_pgtrickle';
}

export type ExtendedStatement =
  | CreateSecret
  | AlterSecret
  | CreateConnection
  | AlterConnection
  | ValidateConnection
  | CreateSource
  | AlterSource
  | CreateTableFromSource
  | CreateSink
  | AlterSink
  | CreateMigration
  | ExplainMigration
  | AlterMigration
  | CreateMaterializedView
  | RefreshMaterializedView
  | AlterSchemaSwap
  | DropObject
  | DropRelation
  | DropSchema
  | ShowObjects
  | ShowCreate
  | Subscribe
  | CopySubscribe
  | DeclareSubscription
  | FetchSubscription
  | CloseSubscription
  | CreateDurableSubscription
  | AcknowledgeDurableSubscription
  | DropDurableSubscription
  | MentionsPgtrickle;

/**
 * One statement of a query text. `at`/`end` are offsets into the whole text and `text` is the slice between them: from the first
 * character that is not whitespace (a comment in front belongs to it) to the last, without the semicolon.
 */
export interface StatementText {
  readonly text: string;
  readonly at: number;
  readonly end: number;
  /** null: not extended, belongs to the upstream. */
  readonly statement: ExtendedStatement | null;
}
