import { defineConfig } from 'vitest/config';

export default defineConfig({
	test: {
		dir: import.meta.dirname,
		include: ['*.test.ts'],
		testTimeout: 400_000,
		hookTimeout: 300_000,
		expect: { poll: { timeout: 60_000 } },
		// Browsers are heavy: a machine of two cores runs one.
		fileParallelism: false
	}
});
