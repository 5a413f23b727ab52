/**
 * Reading Postgres's parse tree as plain data.
 * Invariant: a node kind this code has never heard of is walked through, not skipped: nothing hides inside it.
 */

export type Fields = Readonly<Record<string, unknown>>;

export function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function node(value: unknown): Fields {
  return isFields(value) ? value : {};
}

export function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

/** The object found along a path of field names. */
export function at(value: unknown, ...path: readonly string[]): Fields | undefined {
  let here: unknown = value;
  for (const step of path) here = isFields(here) ? here[step] : undefined;
  return isFields(here) ? here : undefined;
}

/** The strings of a list of String nodes: a name, a function name, an operator. */
export function strings(value: unknown): string[] {
  return list(value).flatMap((item) => {
    const text = at(item, 'String')?.['sval'];
    return typeof text === 'string' ? [text] : [];
  });
}

/** The kind and the fields of `{ Kind: { .. } }`. */
export function kindOf(value: unknown): { readonly kind: string; readonly fields: Fields } {
  if (isFields(value)) {
    for (const [kind, fields] of Object.entries(value)) if (/^[A-Z]/.test(kind)) return { kind, fields: node(fields) };
  }
  return { kind: '', fields: {} };
}

/** Calls `visit` on every node below and including `value`. When `visit` returns false, what is inside that node is left out. */
export function walk(value: unknown, visit: (kind: string, fields: Fields) => boolean | undefined): void {
  if (Array.isArray(value)) {
    for (const item of value) walk(item, visit);
    return;
  }
  if (!isFields(value)) return;
  for (const [key, inner] of Object.entries(value)) {
    if (/^[A-Z]/.test(key) && visit(key, node(inner)) === false) continue;
    walk(inner, visit);
  }
}

/** True when a node of one of these kinds is inside. */
export function contains(value: unknown, kinds: ReadonlySet<string>): boolean {
  let found = false;
  walk(value, (kind) => {
    if (kinds.has(kind)) found = true;
    return !found;
  });
  return found;
}

/** Names of the functions called, as they would be printed: the last two parts, or one. */
export function functionName(fields: Fields): string {
  return strings(fields['funcname']).join('.');
}
