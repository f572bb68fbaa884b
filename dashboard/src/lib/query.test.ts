import { expect, test } from 'vitest';
import { List, Query } from './query.svelte.ts';

/** Answers that a test gives when it likes. */
function answers<T>() {
	const asked: { cursor: string | null; signal: AbortSignal; give: (answer: T) => void }[] = [];
	const ask = (cursor: string | null, signal: AbortSignal) =>
		new Promise<T>((give) => asked.push({ cursor, signal, give }));
	return { asked, ask };
}

test('changes that come faster than answers keep nobody from an answer', async () => {
	const { asked, ask } = answers<number>();
	const query = new Query((signal) => ask(null, signal));
	const first = query.refresh();
	for (let change = 0; change < 5; change++) {
		void query.refresh();
		void query.refresh();
		expect([asked.length, asked[change]?.signal.aborted]).toEqual([change + 1, false]);
		asked[change]?.give(change);
		await expect.poll(() => query.value).toBe(change);
		// What was under way may not have known of the change.
		expect(asked.length).toBe(change + 2);
	}
	asked[5]?.give(5);
	await first;
	expect([query.value, query.loading, asked.length]).toEqual([5, false, 6]);
});

test('a list that changes all the time is read on', async () => {
	type Item = { id: string };
	const page = (ids: string, next_cursor: string | null) => ({
		items: [...ids].map((id) => ({ id })),
		next_cursor
	});
	const { asked, ask } = answers<{ items: Item[]; next_cursor: string | null }>();
	const list = new List<Item>(ask);
	const shown = () => list.items.map(({ id }) => id).join('');
	const begun = list.refresh();
	asked[0]?.give(page('ab', 'b'));
	await begun;
	const again = list.refresh();
	// They scroll while the list is fetched anew, and while it changes once more.
	void list.refresh();
	void list.next();
	asked[1]?.give(page('ab', 'b'));
	await expect.poll(() => asked.length).toBe(3);
	expect(asked[2]?.cursor).toBe(null);
	asked[2]?.give(page('ab', 'b'));
	await expect.poll(() => asked.length).toBe(4);
	expect(asked[3]?.cursor).toBe('b');
	asked[3]?.give(page('cd', null));
	await again;
	expect([shown(), list.more, list.loading]).toEqual(['abcd', false, false]);
});
