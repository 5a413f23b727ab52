/** What engines hold, and what is left of that when they end. */
import { expect, it } from 'vitest';
import type { ParentMessage } from '../../../src/config.ts';
import { passHolds } from '../../../src/server/pass-holds.ts';
import type { WorkerCommand } from '../../../src/wire/pool/report.ts';

const told: WorkerCommand[] = [];
const workers = {
  command: async (command: WorkerCommand) => {
    told.push(command);
    return { found: true, missing: [], errors: [] };
  },
};
const hold = { type: 'hold', id: 1, names: ['users'], unknown: true, ms: 5 } as const;

it('an engine is answered when the workers have been told, and what it let go goes on', async () => {
  const answers: ParentMessage[] = [];
  const holds = passHolds(workers, 'shop');
  holds.received(hold, (answer) => answers.push(answer));
  await expect.poll(() => answers).toEqual([{ type: 'held', id: 1 }]);
  holds.received({ type: 'let-go', id: 1, changed: ['users'] }, () => undefined);
  const [begun, ended] = told.splice(0);
  expect(begun).toMatchObject({ command: 'hold', order: { database: 'shop', names: ['users'], unknown: true, ms: 5 } });
  expect(ended).toMatchObject({ command: 'let_go', database: 'shop', changed: ['users'] });
  expect(begun?.command === 'hold' && ended?.command === 'let_go' && begun.order.id === ended.id).toBe(true);
});

it('an engine that has ended holds nothing, and the next one has ids of its own', () => {
  const holds = passHolds(workers, 'shop');
  holds.received(hold, () => undefined);
  holds.ended();
  holds.received(hold, () => undefined);
  const [first, end, second] = told.splice(0);
  expect(end).toEqual({ command: 'let_go', database: 'shop', id: null, changed: [] });
  expect(first?.command === 'hold' && second?.command === 'hold' && first.order.id !== second.order.id).toBe(true);
});

it('other messages are none of its business', () => {
  passHolds(workers, 'shop').received({ type: 'ready' }, () => undefined);
  expect(told).toEqual([]);
});
