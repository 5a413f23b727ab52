/** docs/configuration.md lists every setting with its default and whether a reload changes it. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { databaseSettings, fileSettings, fixedSettings, settings, showSetting, userSettings } from '../../../src/proxy-setting-names.ts';
import { flagOf } from '../../../src/proxy-settings.ts';
import { defaultProxySettings } from '../../../src/wire/pool/settings.ts';

const page = readFileSync(new URL('../../../docs/configuration.md', import.meta.url), 'utf8');
const row = (name: string): readonly string[] =>
  new RegExp(`^\\| \`${name}\` \\|(.*)\\|$`, 'm')
    .exec(page)?.[1]
    ?.split('|')
    .map((cell) => cell.trim()) ?? [];

describe('docs/configuration.md', () => {
  it.each(settings)('$name', (setting) => {
    const cells = row(setting.name);
    if (setting.kind !== 'names' && setting.key !== 'authQuery') expect(cells).toContain(showSetting(defaultProxySettings, setting));
    expect(cells).toContain(fixedSettings.has(setting.name) ? 'no' : 'yes');
    if (setting.kind === 'seconds') expect(cells).toContain('s');
    const flag = flagOf[setting.name];
    if (flag !== undefined) expect(cells).toContain(`\`${flag}\``);
  });

  it.each(fileSettings)('%s', (name) => {
    const cells = row(name);
    expect(cells.some((cell) => (fixedSettings.has(name) ? cell === 'no' : cell.startsWith('yes')))).toBe(true);
    const flag = flagOf[name];
    if (flag !== undefined) expect(cells).toContain(`\`${flag}\``);
  });

  it.each([...Object.keys(databaseSettings), ...Object.keys(userSettings)])('%s of a database or user', (name) => {
    expect(page.slice(page.indexOf('## [databases] and [users]'))).toContain(`\`${name}\``);
  });
});
