/** Pauses that end when there is something to do. A pause that nobody ended would outlast the test. */
import { expect, test } from 'vitest';
import { Wakeup } from '../../src/wakeup.ts';

const long = 1_000_000;

test('a call ends the pause that is under way', async () => {
  const wakeup = new Wakeup();
  const pause = wakeup.pause(long);
  wakeup.wake();
  await pause;
});

test('a call that comes before a pause makes it none, once', async () => {
  const wakeup = new Wakeup();
  wakeup.wake();
  await wakeup.pause(long);
  let over = false;
  const next = wakeup.pause(long).then(() => {
    over = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  expect(over).toBe(false);
  wakeup.wake();
  await next;
});

test('a call is answered by a look at everything', async () => {
  const wakeup = new Wakeup();
  wakeup.wake();
  wakeup.forget();
  let over = false;
  const pause = wakeup.pause(long).then(() => {
    over = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  expect(over).toBe(false);
  wakeup.wake();
  await pause;
});

test('a loop whose pauses are none still lets everybody else run', async () => {
  const wakeup = new Wakeup();
  for (const woken of [false, true]) {
    let heard = false;
    setImmediate(() => {
      heard = true;
    });
    for (let turn = 0; turn < 1000 && !heard; turn++) {
      if (woken) wakeup.wake();
      await wakeup.pause(0);
    }
    expect(heard).toBe(true);
  }
});
