import { defineConfig } from 'vitest/config';

// Tests start real servers, so files run a few at a time and each test has room for a slow machine.
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // They need packages of their own: npm run clients.
    exclude: ['test/clients/**', '**/node_modules/**'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    maxWorkers: 2,
    globalSetup: ['test/support/global-setup.ts'],
  },
});
