/** Types and expressions: what Postgres has found wrong with them, and whether values come back. Pure. */
import { quoteIdentifier } from '../sql/quote.ts';
import type { Examined, Probe } from './examined.ts';
import { blocker, type Finding, found, warning } from './finding.ts';
import type { ProbeProblem } from './probes.ts';

export function typeFindings(examined: Examined): readonly Finding[] {
  const { definition, facts } = examined;
  if (definition.kind === 'move') return [];
  return [
    ...examined.probes.flatMap((probe) => probeFindings(probe, facts.surroundings.caller.superuser)),
    ...(definition.kind === 'alter' ? needFindings(examined) : []),
    ...roundTripFindings(examined),
  ];
}

const clause = ({ direction, column, given }: Probe): string => {
  if (!given) return `column "${column}"`;
  return direction === 'up' ? `the expression for column "${column}"` : `the expression back to column "${column}"`;
};

function probeFindings(probe: Probe, isSuperuser: boolean): readonly Finding[] {
  const { result } = probe;
  if ('problem' in result) return [refused(probe, result.problem)];
  const { outside } = result.value;
  if (outside.length === 0) return [];
  const message = `${clause(probe)} uses ${outside.join(', ')}`;
  const detail = 'Millrace itself evaluates it, for every row that is written.';
  if (isSuperuser)
    return [warning('untrusted_function', message, { detail: `${detail} It must not change until the migration is finished.` })];
  return [
    blocker('untrusted_function', '42501', message, {
      detail,
      hint: 'Use functions and operators of pg_catalog, or have a superuser create the migration.',
    }),
  ];
}

/** The words of Postgres are about a generated column, of which the user knows nothing. */
function refused(probe: Probe, { code, message, detail, hint }: ProbeProblem): Finding {
  const { column, direction, given, type } = probe;
  if (code === '42804' && !given) {
    return direction === 'up'
      ? blocker('no_cast', code, `column "${column}" cannot be cast automatically to type ${type}`, {
          hint: `You might need to specify "USING ${quoteIdentifier(column)}::${type}".`,
        })
      : blocker('no_cast_back', code, `column "${column}" cannot be cast automatically back to type ${type}`, {
          detail: 'After the cutover the old shape has to be kept current, too.',
          hint: `Say how: REVERT USING ${quoteIdentifier(column)}::${type}.`,
        });
  }
  if (code === '42804') return blocker('wrong_type', code, `${clause(probe)} is not of type ${type}`, { hint: 'Cast it.' });
  if (code === '42P17') {
    return blocker('not_immutable', code, `${given ? clause(probe) : `the cast of column "${column}" to type ${type}`} is not immutable`, {
      detail: 'Its value may depend on more than the row: on a setting, on the time, or on other rows.',
      hint: `Write one that does not, such as "at" AT TIME ZONE 'UTC'.`,
    });
  }
  const said = message.replace(/ in column generation expressions?/, ' here').replace(/column "millrace_result"/, `column "${column}"`);
  return blocker('expression', code, `${clause(probe)}: ${said}`, {
    ...(detail === '' ? {} : { detail }),
    ...(hint === '' ? {} : { hint }),
  });
}

/** Whether there is anything to do, and whether it needs a migration. */
function needFindings({ definition, facts, probes }: Examined): readonly Finding[] {
  if (definition.kind !== 'alter') return [];
  const changes = definition.columns.map(({ column, type, up }) => ({
    column,
    type,
    up,
    before: facts.table.source.columns.find(({ name }) => name === column)?.type ?? '',
    isKnown: probes.some((probe) => probe.column === column && probe.direction === 'up' && 'value' in probe.result),
  }));
  const idle = changes.filter(({ up, type, before, isKnown }) => isKnown && up === null && type === before);
  const cheap = changes.filter(({ up, type, before }) => up === null && isMetadataOnly(before, type));
  return [
    ...idle.map(({ column, type }) => blocker('nothing_to_do', '42804', `column "${column}" is of type ${type} already`)),
    ...found(cheap.length > 0 && cheap.length === changes.length, () =>
      warning('metadata_only', `for this Postgres rewrites nothing: a plain ALTER TABLE does it at once`, {
        detail: cheap.map(({ column, before, type }) => `"${column}": ${before} to ${type}.`).join(' '),
        hint: "SET lock_timeout = '100ms'; ALTER TABLE .. ALTER COLUMN .. TYPE ..;",
      }),
    ),
  ];
}

/** Changes of type that leave every stored value as it is (the coercions that Postgres knows to be binary, and length checks that only widen). */
export function isMetadataOnly(before: string, after: string): boolean {
  const varying = /^(character varying|bit varying)(?:\((\d+)\))?$/;
  const from = varying.exec(before);
  const to = varying.exec(after);
  if (from !== null && to !== null && from[1] === to[1])
    return to[2] === undefined || (from[2] !== undefined && Number(to[2]) >= Number(from[2]));
  if (from?.[1] === 'character varying' && after === 'text') return true;
  if (before === 'text' && after === 'character varying') return true;
  if (before === 'cidr' && after === 'inet') return true;
  const numeric = /^numeric(?:\((\d+),(-?\d+)\))?$/;
  const wide = numeric.exec(before);
  const wider = numeric.exec(after);
  if (wide === null || wider === null) return false;
  return wider[1] === undefined || (wide[2] === wider[2] && Number(wider[1]) >= Number(wide[1]));
}

function roundTripFindings({ definition, roundTrip }: Examined): readonly Finding[] {
  if (roundTrip === null) return [];
  if ('problem' in roundTrip) {
    const { code, message, detail } = roundTrip.problem;
    return [
      blocker('not_convertible', code, `a row cannot be converted: ${message}`, {
        ...(detail === '' ? {} : { detail }),
        hint: 'Mend the expressions, so that every row has a value in both shapes.',
      }),
    ];
  }
  const { rows, changed, unstable, example } = roundTrip.value;
  if (changed + unstable === 0) return [];
  const message = `the old values of ${changed} of ${rows} rows looked at do not come back from the new ones`;
  const detail = `${example === null ? '' : `For example of the row ${example}. `}They would be rewritten when a row is written in the new shape, and by REVERT.`;
  const taken = definition.kind === 'split' || (definition.kind === 'alter' && definition.columns.some(({ down }) => down !== null));
  const shown =
    changed > 0 ? message : `the new values of ${unstable} of ${rows} rows looked at do not come back from the old ones made of them`;
  if (taken) return [warning('not_invertible', shown, { detail })];
  return [
    blocker('not_invertible', '22023', shown, {
      detail,
      hint: 'Say how they come back: REVERT USING; or that this is meant, by the same.',
    }),
  ];
}
