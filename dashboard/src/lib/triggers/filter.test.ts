import { expect, test } from 'vitest';
import type { Trigger } from '#lib/api/types.ts';
import { fired, fits, heard } from './filter.ts';

const kv = (name: string, filter: object, enabled = true) =>
	({ name, kind: 'kv', enabled, filter }) as unknown as Trigger;

test.each([
	['*', 'orders', true],
	['orders:*', 'orders:1', true],
	['orders:*', 'orders', false],
	['orders', 'orders', true],
	['orders', 'orders2', false]
])('the pattern %s on %s: %s', (pattern, name, fit) => {
	expect(fits(pattern, name)).toBe(fit);
});

test('a change fires the enabled triggers of its collection, key and kind of change', () => {
	const all = [
		kv('any', { collection: '*', ops: ['insert', 'update', 'delete'], key: null }),
		kv('inserts', { collection: 'orders', ops: ['insert'], key: null }),
		kv('one key', { collection: 'orders', ops: ['update'], key: 'o1' }),
		kv('other', { collection: 'users', ops: ['update'], key: null }),
		kv('off', { collection: '*', ops: ['update'], key: null }, false)
	];
	const names = (op: string, key: string) => fired(all, op, 'orders', key).map(({ name }) => name);
	expect(names('update', 'o1')).toEqual(['any', 'one key']);
	expect(names('insert', 'o2')).toEqual(['any', 'inserts']);
});

test('what a trigger hears is told in words', () => {
	const ops = ['insert', 'update', 'delete'];
	expect(heard(kv('a', { collection: 'orders', ops, key: null }))).toBe('any change in orders');
	expect(heard(kv('a', { collection: 'o*', ops: ['insert'], key: 'x*' }))).toBe('insert in o*, keys x*');
});
