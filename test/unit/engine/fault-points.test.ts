import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { faultPoints, parseFaultPoint } from '../../../src/engine/fault-points.ts';

describe('MILLRACE_FAULT_POINT', () => {
  it('names a point, the pass, and what happens there', () => {
    expect(parseFaultPoint('steps.applied')).toEqual({ point: 'steps.applied', pass: 1, signal: 'SIGKILL' });
    expect(parseFaultPoint('steps.applied:3')).toEqual({ point: 'steps.applied', pass: 3, signal: 'SIGKILL' });
    expect(parseFaultPoint('steps.applied:3:stop')).toEqual({ point: 'steps.applied', pass: 3, signal: 'SIGSTOP' });
  });

  it('means nothing when it is not set, and is refused when there is no such point', () => {
    expect(parseFaultPoint(undefined)).toBeNull();
    expect(parseFaultPoint('')).toBeNull();
    expect(() => parseFaultPoint('steps.aplied')).toThrow('MILLRACE_FAULT_POINT: there is no point steps.aplied');
  });

  it('has each point once', () => {
    expect(new Set(faultPoints).size).toBe(faultPoints.length);
  });
});

it('each point is somewhere in the engine', () => {
  const folder = new URL('../../../src/engine/', import.meta.url);
  const sources = readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && name !== 'fault-points.ts')
    .map((name) => readFileSync(new URL(name, folder), 'utf8'));
  expect(faultPoints.filter((point) => !sources.some((source) => source.includes(`('${point}')`)))).toEqual([]);
});
