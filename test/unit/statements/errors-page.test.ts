/** docs/errors.md lists exactly the conditions of the registry. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { conditions } from '../../../src/errors.ts';

const page = readFileSync(new URL('../../../docs/errors.md', import.meta.url), 'utf8');
const catalog = readFileSync(new URL('../../../src/catalog/migrations/001_catalog.sql', import.meta.url), 'utf8');
const rows = [...page.matchAll(/^\| `(\w+)` \| ([^|]*) \| ((?:[^|]|\\\|)*) \| ([^|]+) \|$/gm)];

describe('docs/errors.md', () => {
  it('has a row for every condition, with its SQLSTATE and message, in the same order', () => {
    expect(rows.map(([, condition, code, message]) => [condition, code, message?.replaceAll('\\|', '|')])).toEqual(
      Object.entries(conditions).map(([condition, { code, message }]) => [
        condition,
        code.startsWith('{') ? 'of the cause' : code,
        message,
      ]),
    );
  });

  it('says for each what to do', () => {
    for (const [, condition, , , advice] of rows) expect(`${condition}: ${advice?.trim()}`).toMatch(/: .{15,}\.$/);
  });

  it('names the codes that the catalog raises', () => {
    const raised = [...catalog.matchAll(/ERRCODE = (?:coalesce\([^,]*, )?'(\w{5})'/g)].map(([, code]) => code ?? '');
    expect(raised.length).toBeGreaterThan(3);
    // 55P04 is for engines, not for clients.
    for (const code of raised.filter((one) => one !== '55P04')) expect(page).toContain(`| ${code} |`);
  });
});

describe('the registry', () => {
  it('has five-character SQLSTATEs and messages as Postgres writes them', () => {
    for (const [condition, { code, message }] of Object.entries(conditions)) {
      expect(`${condition} ${code}`).toMatch(/ (?:[0-9A-Z]{5}|\{code\})$/);
      expect(`${condition}: ${message}`).not.toMatch(/\.$/);
      expect(`${condition}: ${message}`).not.toMatch(/: [A-Z][a-z]/);
    }
  });
});
