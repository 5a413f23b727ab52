import { describe, expect, test } from 'vitest';
import { nextTime, parseSchedule } from '../../../src/catalog/schedule.ts';

describe('schedules', () => {
  test.each([
    ['30s', 30],
    ['5m', 300],
    ['1h30m', 5400],
    ['1d', 86_400],
    ['1w', 604_800],
    ['90', 90],
    ['2H', 7200],
  ])('%s is %d seconds', (text, seconds) => {
    expect(parseSchedule(text)).toEqual({ kind: 'every', ms: seconds * 1000 });
  });

  test.each([
    ['', 'schedule cannot be empty'],
    ['-5s', "schedule cannot be negative: '-5s'"],
    ['0s', 'schedule must be at least 1s, got 0s'],
    ['5x', "invalid duration unit 'x' in '5x'. Use units s, m, h, d or w."],
    ['h', "expected a number before 'h' in duration 'h'"],
    ['1h30', "trailing digits '30' without a unit in duration '1h30'. Use units s, m, h, d or w."],
    ['1.5h', "invalid duration '1.5h'"],
    ['* * *', "invalid cron expression '* * *': expected 5 or 6 fields, got 3"],
  ])('%s is refused', (text, message) => {
    expect(() => parseSchedule(text)).toThrow(message);
  });

  test('none of its own', () => {
    expect(parseSchedule(null)).toEqual({ kind: 'calculated' });
    expect(nextTime(parseSchedule('Calculated'), 0)).toBeNull();
  });

  test('cron expressions are read in UTC', () => {
    const after = Date.UTC(2026, 0, 1, 12, 3, 10);
    expect(nextTime(parseSchedule('*/5 * * * *'), after)).toBe(Date.UTC(2026, 0, 1, 12, 5));
    expect(nextTime(parseSchedule('30 0 6 * * *'), after)).toBe(Date.UTC(2026, 0, 2, 6, 0, 30));
    expect(nextTime(parseSchedule('@hourly'), after)).toBe(Date.UTC(2026, 0, 1, 13));
    expect(nextTime(parseSchedule('10s'), after)).toBe(after + 10_000);
  });
});
