/**
 * Steps of few rows as prepared statements with one array of texts per column: no COPY, no staging table that would have to be emptied,
 * and everything from the first to the last statement of an epoch fits into one pipeline with one Sync.
 * Invariant: values reach the types' input functions as COPY would give them; the SQL that applies them is the same as for staged rows.
 */
import { type Storage, storageTable } from '../catalog/model.ts';
import type { Execution } from '../replication/session-contract.ts';
import { TextArray } from '../replication/text-array.ts';
import { applyStaged, type ChunkShape, insertColumns, stagingColumns } from './apply-sql.ts';
import type { Step } from './change-batch.ts';
import { remembering } from './remembering.ts';

type RowsStep = Extract<Step, { kind: 'rows' }>;

/** Rows up to which arrays beat COPY. */
export const fewRows = 1000;
/** Wide rows go by COPY: an array is held in memory as a whole, on both sides. */
const fewBytes = 1024 * 1024;

const [tab, newline, backslash, capitalN] = [0x09, 0x0a, 0x5c, 0x4e];
/** CopyData: type byte and length before the lines. */
const header = 5;
/** Letter after a backslash -> the byte it stands for. Other letters stand for themselves. */
const escaped: ReadonlyMap<number, number> = new Map([
  [0x62, 0x08],
  [0x74, 0x09],
  [0x6e, 0x0a],
  [0x76, 0x0b],
  [0x66, 0x0c],
  [0x72, 0x0d],
]);

/** Whether the rows of a step are few enough for arrays. */
export function isFew(step: RowsStep): boolean {
  if (step.insertRows + step.changeRows > fewRows) return false;
  return size(step.inserts) + size(step.changes) <= fewBytes;
}

const size = (frames: readonly Buffer[]): number => frames.reduce((sum, frame) => sum + frame.length, 0);

/** The statements of a step with few rows, inserts first. */
export function rowsExecutions(storage: Storage, step: RowsStep): Execution[] {
  const executions: Execution[] = [];
  const add = ({ width, statements }: Texts, rows: readonly Buffer[]): void => {
    const arrays = params(rows, width);
    for (const { name, sql } of statements) executions.push({ name, sql, params: arrays });
  };
  if (step.insertRows > 0) add(textsOf(storage, null), step.inserts);
  if (step.changeRows > 0) add(textsOf(storage, step.shape), step.changes);
  return executions;
}

/** Statements that take arrays, and how many of these. */
interface Texts {
  readonly width: number;
  readonly statements: readonly Execution[];
}

/** They are the same as long as the storage is, and writing them takes a good part of an epoch of one row. */
const written = remembering<Storage, string, Texts>();

/** `shape`: of changes; null: rows that only insert. */
const textsOf = (storage: Storage, shape: ChunkShape | null): Texts =>
  shape === null
    ? written(storage, 'inserts', () => insertTexts(storage))
    : written(storage, shapeName(shape), () => changeTexts(storage, shape));

function insertTexts(storage: Storage): Texts {
  const columns = insertColumns(storage);
  const own = columns.length - storage.columns.length;
  const sql = `INSERT INTO ${storageTable(storage.id)} (${columns.join(', ')}) SELECT ${typed(storage, own).join(', ')} FROM ${unnest(columns)}`;
  return { width: columns.length, statements: [{ name: `n${storage.id}`, sql }] };
}

function changeTexts(storage: Storage, shape: ChunkShape): Texts {
  const columns = stagingColumns(storage);
  const own = columns.length - storage.columns.length;
  const staged = `WITH staged AS (SELECT ${typed(storage, own).join(', ')} FROM ${unnest(columns)})\n`;
  const statements = applyStaged(storage, shape, 'staged').map((sql, index) => ({
    name: `a${storage.id}_${shapeName(shape)}_${index}`,
    sql: staged + sql,
  }));
  return { width: columns.length, statements };
}

/** Millrace's own columns that may come before those of the storage. */
const ownTypes: Readonly<Record<string, string>> = { seq: 'integer', op: '"char"', keep: 'text', h: 'integer' };

/** Select list over `unnest`: each column with its type. */
function typed(storage: Storage, own: number): string[] {
  const before = own === 0 ? [] : (own === 1 ? insertColumns(storage) : stagingColumns(storage)).slice(0, own);
  return [
    ...before.map((name) => `u.${name}::${ownTypes[name] ?? 'text'} AS ${name}`),
    ...storage.columns.map((column) => `u.c${column.attnum}::${column.type} AS c${column.attnum}`),
  ];
}

const unnest = (columns: readonly string[]): string =>
  `unnest(${columns.map((_, index) => `$${index + 1}::text[]`).join(', ')}) AS u(${columns.join(', ')})`;

const params = (frames: readonly Buffer[], width: number): { readonly binary: Buffer }[] =>
  columnArrays(frames, width).map((array) => array.toParam());

function shapeName({ inserts, updates, deletes, repeats, keeps, rehash }: ChunkShape): string {
  const bit = (set: boolean): string => (set ? '1' : '0');
  return `${bit(inserts)}${bit(updates)}${bit(deletes)}${bit(repeats)}${bit(keeps)}${bit(rehash)}`;
}

/** Lines in COPY text format, framed as CopyData messages, transposed. */
export function columnArrays(frames: readonly Buffer[], width: number): TextArray[] {
  const arrays = Array.from({ length: width }, () => new TextArray());
  for (const frame of frames) {
    let column = 0;
    let start = header;
    let plain = true;
    for (let at = header; at < frame.length; at++) {
      const byte = frame[at];
      if (byte === backslash) {
        plain = false;
        at++;
      } else if (byte === tab || byte === newline) {
        const array = arrays[column];
        if (array === undefined) throw new Error(`a line of rows has more than ${width} columns`);
        if (plain) array.append(frame, start, at);
        else if (at - start === 2 && frame[start + 1] === capitalN) array.appendNull();
        else {
          const bytes = unescaped(frame, start, at);
          array.append(bytes, 0, bytes.length);
        }
        plain = true;
        start = at + 1;
        column = byte === newline ? 0 : column + 1;
      }
    }
  }
  return arrays;
}

function unescaped(source: Buffer, start: number, end: number): Buffer {
  const bytes = Buffer.allocUnsafe(end - start);
  let length = 0;
  for (let at = start; at < end; at++) {
    let byte = source[at] ?? 0;
    if (byte === backslash) {
      byte = source[++at] ?? 0;
      byte = escaped.get(byte) ?? byte;
    }
    bytes[length++] = byte;
  }
  return bytes.subarray(0, length);
}
