import { defineConfig } from 'vitest/config';

// One file at a time: each starts the tools of a client, and all share the servers that globalSetup starts.
export default defineConfig({
  test: {
    root: import.meta.dirname,
    include: ['*.test.ts'],
    testTimeout: 90_000,
    hookTimeout: 120_000,
    pool: 'forks',
    fileParallelism: false,
    globalSetup: ['support/global-setup.ts'],
  },
});
