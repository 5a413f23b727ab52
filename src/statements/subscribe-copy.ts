/** Rows as COPY writes them. Invariant: COPY FROM reads them back as they were, as it does what Postgres itself writes. */
import { millraceError } from '../errors.ts';
import type { Option } from '../sql/ast.ts';
import type { CopyFormat, CopyLines } from './caller-session.ts';

const escapes: Readonly<Record<string, string>> = {
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\v': '\\v',
};

/** The format that the options of COPY ask for, given the names of the columns. */
export function copyFormat(options: readonly Option[]): (names: readonly string[]) => CopyFormat {
  const given = new Map<string, string>();
  for (const { name, value, at } of options) {
    if (!['FORMAT', 'DELIMITER', 'NULL', 'HEADER'].includes(name)) {
      throw millraceError(
        'subscription_copy_option',
        { option: `option ${name}`, hint: 'FORMAT, DELIMITER, NULL and HEADER can be given.' },
        { position: at + 1 },
      );
    }
    given.set(name, value.kind === 'string' ? value.value : '');
  }
  const format = (given.get('FORMAT') ?? 'text').toLowerCase();
  if (format === 'binary') {
    const other = ['DELIMITER', 'NULL', 'HEADER'].find((name) => given.has(name));
    if (other === undefined) return () => ({ kind: 'binary' });
    throw millraceError('subscription_copy_option', { option: `${other} in BINARY mode`, hint: 'Leave it out, or use text or csv.' });
  }
  if (format !== 'text' && format !== 'csv') {
    throw millraceError('subscription_copy_option', { option: `FORMAT ${format}`, hint: 'Use text, csv or binary.' });
  }
  const delimiter = given.get('DELIMITER') ?? (format === 'csv' ? ',' : '\t');
  if (delimiter.length !== 1 || /[\n\r\\"a-z0-9.]/.test(delimiter)) {
    throw millraceError('subscription_copy_option', {
      option: `DELIMITER '${delimiter}'`,
      hint: 'It must be one character, and no letter, digit, dot, quote or backslash.',
    });
  }
  const nullText = given.get('NULL') ?? (format === 'csv' ? '' : '\\N');
  const line = format === 'csv' ? csvLine(delimiter, nullText) : textLine(delimiter, nullText);
  const withHeader = ['true', 'on', '1'].includes((given.get('HEADER') ?? 'false').toLowerCase());
  return (names) => ({ kind: 'lines', header: withHeader ? line(names) : null, line });
}

function textLine(delimiter: string, nullText: string): CopyLines['line'] {
  const special = new RegExp(`[\\\\\b\f\n\r\t\v${delimiter === '\t' ? '' : `\\${delimiter}`}]`, 'g');
  return (row) =>
    `${row.map((value) => (value === null ? nullText : value.replace(special, (character) => escapes[character] ?? `\\${character}`))).join(delimiter)}\n`;
}

function csvLine(delimiter: string, nullText: string): CopyLines['line'] {
  return (row) => {
    const only = row.length === 1;
    const quoted = (value: string): string =>
      value === nullText || (only && value === '\\.') || value.includes(delimiter) || /["\n\r]/.test(value)
        ? `"${value.replaceAll('"', '""')}"`
        : value;
    return `${row.map((value) => (value === null ? nullText : quoted(value))).join(delimiter)}\n`;
  };
}
