/** One thing found about a migration before it begins. Pure. Invariant: a blocker has a SQLSTATE, because CREATE MIGRATION is refused with it. */

export interface Finding {
  /** blocker: refused; warning: told at CREATE; info: told by EXPLAIN only. */
  readonly severity: 'blocker' | 'warning' | 'info';
  /** What it is, in one word that stays the same. */
  readonly code: string;
  readonly sqlstate: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

interface More {
  readonly detail?: string;
  readonly hint?: string;
}

export const blocker = (code: string, sqlstate: string, message: string, more: More = {}): Finding => ({
  severity: 'blocker',
  code,
  sqlstate,
  message,
  ...more,
});

export const warning = (code: string, message: string, more: More = {}): Finding => ({
  severity: 'warning',
  code,
  sqlstate: '01000',
  message,
  ...more,
});

export const info = (code: string, message: string, more: More = {}): Finding => ({
  severity: 'info',
  code,
  sqlstate: '00000',
  message,
  ...more,
});

/** The finding when the condition holds. */
export const found = (condition: boolean, finding: () => Finding): readonly Finding[] => (condition ? [finding()] : []);

/** Names that come a second time. */
export const repeated = (names: readonly string[]): readonly string[] => [...new Set(names.filter((name, i) => names.indexOf(name) !== i))];

export const overlaps = (columns: readonly string[], others: ReadonlySet<string>): boolean => columns.some((column) => others.has(column));
