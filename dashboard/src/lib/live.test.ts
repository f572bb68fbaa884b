import { expect, test, vi } from 'vitest';
import { kindOf, live } from './live.svelte.ts';

test.each([
	['dead_letters.created', {}, 'dead_letter'],
	['dead_letters.resolved', {}, 'dead_letter'],
	['executions', {}, 'execution'],
	['changed', { what: 'script' }, 'script'],
	['something new', {}, 'something new']
])('the event %s %j changes the kind %3$s', (type, data, kind) => {
	expect(kindOf({ type, data })).toBe(kind);
});

test('a page hears of what it listens to, in its app, until it stops', () => {
	const heard = vi.fn();
	const stop = live.listen([{ kind: 'script', appId: 'a' }, { kind: 'user' }], heard);
	live.tell('script', 'a');
	live.tell('script', 'b');
	live.tell('route', 'a');
	expect(heard).toHaveBeenCalledTimes(1);
	// About no app, or about all of them.
	live.tell('script');
	live.tell('user', 'b');
	expect(heard).toHaveBeenCalledTimes(3);
	stop();
	live.tell('script', 'a');
	expect(heard).toHaveBeenCalledTimes(3);
});
