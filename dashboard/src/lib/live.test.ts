import { afterEach, beforeEach, expect, test, vi } from 'vitest';
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

/** A stream that a test opens, breaks and refuses. */
class Source extends EventTarget {
	static readonly CLOSED = 2;
	static all: Source[] = [];
	readyState = 0;

	constructor() {
		super();
		Source.all.push(this);
	}

	say(name: string, data?: unknown): void {
		this.dispatchEvent(new MessageEvent(name, { data: JSON.stringify(data) }));
	}

	refuse(): void {
		this.readyState = Source.CLOSED;
		this.say('error');
	}

	close(): void {
		this.readyState = Source.CLOSED;
	}
}

/** The stream that was asked for last. */
function source(): Source {
	const last = Source.all.at(-1);
	if (!last) throw new Error('nobody asked for a stream');
	return last;
}

beforeEach(() => {
	vi.useFakeTimers();
	vi.stubGlobal('EventSource', Source);
	Source.all = [];
});
afterEach(() => {
	live.close();
	vi.unstubAllGlobals();
	vi.useRealTimers();
});

test('what changed before the stream was open is fetched once it is, and no sooner', () => {
	const heard = vi.fn();
	const stop = live.listen([{ kind: 'script' }], heard);
	live.connect();
	expect([live.connected, heard.mock.calls.length]).toEqual([false, 0]);
	source().say('ready');
	expect([live.connected, heard.mock.calls.length]).toEqual([true, 1]);
	// The browser resumed it: changes come by the journal, and executions are in none.
	source().say('ready');
	expect(heard).toHaveBeenCalledTimes(1);
	const ran = vi.fn();
	const stopRan = live.listen([{ kind: 'execution' }], ran);
	source().say('ready');
	expect([heard.mock.calls.length, ran.mock.calls.length]).toEqual([1, 1]);
	stop();
	stopRan();
});

test('a stream that is asked for anew tells once it is open', () => {
	const heard = vi.fn();
	const stop = live.listen([{ kind: 'script' }], heard);
	live.connect();
	source().say('ready');
	source().refuse();
	expect(live.connected).toBe(false);
	vi.advanceTimersByTime(1_000);
	expect(Source.all.length).toBe(2);
	// What is fetched now would miss what happens until it is open.
	expect([live.connected, heard.mock.calls.length]).toEqual([false, 1]);
	source().say('ready');
	expect([live.connected, heard.mock.calls.length]).toEqual([true, 2]);
	// Where it goes on being refused, pages do without.
	source().refuse();
	vi.advanceTimersByTime(1_000);
	source().refuse();
	expect(heard).toHaveBeenCalledTimes(3);
	vi.advanceTimersByTime(2_000);
	expect(Source.all.length).toBe(4);
	stop();
});
