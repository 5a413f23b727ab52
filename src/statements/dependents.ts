/**
 * What hangs on a relation that is to be dropped.
 * Invariant: users are told of views by the names and kinds they know; Millrace's own views in between are never mentioned.
 */
import { type MillraceError, millraceError } from '../errors.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import type { LiveObject } from './names.ts';

/** A relation that users see: live, or (id null) a plain view. */
export interface Droppable {
  readonly id: string | null;
  readonly oid: string;
  readonly kind: 'table' | 'source' | 'view' | 'materialized view';
  /** Quoted and qualified. */
  readonly name: string;
}

/** A view that reads something to be dropped. */
export interface Dependent extends Droppable {
  readonly kind: 'view' | 'materialized view';
  /** OID of a relation it reads. */
  readonly via: string;
}

export function droppable(object: LiveObject): Droppable {
  const kind = object.type === 'view' ? 'materialized view' : object.type;
  return { id: object.id, oid: object.facade, kind, name: `${quoteIdentifier(object.schema)}.${quoteIdentifier(object.name)}` };
}

/** Views that read any of these relations at any depth, nearest first. */
export async function dependentsOf(session: CallerSession, relations: readonly string[]): Promise<Dependent[]> {
  if (relations.length === 0) return [];
  const found = await session.query(
    'SELECT d.relation_id, d.view, d.kind, d.name, d.via FROM millrace.dependents($1::oid[]) d ORDER BY d.depth, d.view',
    [`{${relations.join(',')}}`],
    { quiet: true },
  );
  return found.rows.map(([id, oid, kind, name, via]) => ({
    id: id ?? null,
    oid: oid ?? '',
    kind: kind === 'view' ? 'view' : 'materialized view',
    name: name ?? '',
    via: via ?? '',
  }));
}

/** A sink that reads what is to be dropped. */
export interface ReadingSink {
  readonly id: string;
  readonly kind: 'sink';
  /** Quoted and qualified. */
  readonly name: string;
  readonly relationId: string;
  /** It is to read another relation after its next cutover. */
  readonly leaving: boolean;
}

/** Sinks that read any of these live relations. */
export async function sinksReading(session: CallerSession, relations: readonly (string | null)[]): Promise<ReadingSink[]> {
  const ids = relations.filter((id) => id !== null);
  if (ids.length === 0) return [];
  const found = await session.query(
    'SELECT s.id, s.name, s.relation_id, s.leaving FROM millrace.sinks_of($1::bigint[]) s ORDER BY s.id, s.relation_id',
    [`{${ids.join(',')}}`],
    { quiet: true },
  );
  return found.rows.map(([id, name, relationId, leaving]) => ({
    id: id ?? '',
    kind: 'sink',
    name: name ?? '',
    relationId: relationId ?? '',
    leaving: leaving === 't',
  }));
}

/** Each sink once; raises for one that reads a relation only until its cutover: it shall go on with another one. */
export function droppedSinks(sinks: readonly ReadingSink[], relations: readonly Droppable[]): ReadingSink[] {
  for (const sink of sinks) {
    if (!sink.leaving || sinks.some((other) => other.id === sink.id && !other.leaving)) continue;
    const read = relations.find((relation) => relation.id === sink.relationId);
    throw millraceError('sink_cutover_pending', { sink: sink.name, kind: read?.kind ?? 'relation', name: read?.name ?? '' });
  }
  return sinks.filter((sink, i) => sinks.findIndex((other) => other.id === sink.id) === i);
}

/** As `dependentObjects` wants them. */
export function sinkLines(sinks: readonly ReadingSink[], relations: readonly Droppable[]): string[] {
  return sinks.map((sink) => {
    const read = relations.find((relation) => relation.id === sink.relationId);
    return `sink ${sink.name} depends on ${read?.kind ?? 'relation'} ${read?.name ?? ''}`;
  });
}

/** The refusal of a DROP without CASCADE. `target`: by the name that was typed; `dropped`: what was to go; `others`: what needs it beside the views. */
export function dependentObjects(
  target: { readonly kind: string; readonly name: string },
  dropped: readonly Droppable[],
  dependents: readonly Dependent[],
  others: readonly string[] = [],
): MillraceError {
  const known = new Map([...dropped, ...dependents].map((object) => [object.oid, object]));
  const lines = dependents.map((view) => {
    const read = known.get(view.via);
    return `${view.kind} ${view.name} depends on ${read === undefined ? `${target.kind} ${target.name}` : `${read.kind} ${read.name}`}`;
  });
  return millraceError('dependent_objects', { kind: target.kind, name: target.name, dependents: [...others, ...lines].join('\n') });
}

/** As Postgres words it: one line for one object, a count and a DETAIL for more. */
export function announceCascade(session: CallerSession, objects: readonly { readonly kind: string; readonly name: string }[]): void {
  const lines = objects.map((object) => `drop cascades to ${object.kind} ${object.name}`);
  const [only] = lines;
  if (only === undefined) return;
  const more = lines.length > 1;
  session.notice({
    severity: 'NOTICE',
    code: '00000',
    message: more ? `drop cascades to ${lines.length} other objects` : only,
    ...(more ? { detail: lines.join('\n') } : {}),
  });
}
