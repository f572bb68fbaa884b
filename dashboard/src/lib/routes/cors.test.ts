import { expect, test } from 'vitest';
import { formOf, policyOf } from './cors.ts';

test('a policy comes out of its form as it went in', () => {
	const policy = {
		origins: ['https://shop.example.com', 'http://localhost:5173'],
		methods: ['GET', 'POST'],
		headers: [],
		exposed_headers: ['x-page'],
		credentials: true,
		max_age_s: 60
	};
	expect(policyOf(formOf(policy))).toEqual(policy);
	expect(policyOf(formOf({ ...policy, methods: null }))).toEqual({ ...policy, methods: null });
	expect(policyOf(formOf(null))).toBe(null);
});

test('a form that is turned on has what is usual, and lists as people type them', () => {
	const form = { ...formOf(null), on: true, origins: ' https://a.test,\nhttps://b.test\n', methods: 'get post' };
	expect(policyOf(form)).toEqual({
		origins: ['https://a.test', 'https://b.test'],
		methods: ['GET', 'POST'],
		headers: ['authorization', 'content-type', 'idempotency-key'],
		exposed_headers: ['idempotency-ignored', 'idempotency-replayed', 'retry-after', 'x-execution-id'],
		credentials: false,
		max_age_s: 600
	});
});
