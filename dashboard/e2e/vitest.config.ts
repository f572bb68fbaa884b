import { defineConfig } from 'vitest/config';

export default defineConfig({
	test: {
		dir: import.meta.dirname,
		include: ['*.test.ts'],
		testTimeout: 120_000,
		hookTimeout: 120_000,
		expect: { poll: { timeout: 15_000 } },
		// Browsers are heavy: a machine of two cores runs one.
		fileParallelism: false
	}
});
