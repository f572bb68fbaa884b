import { expect, test } from 'vitest';
import { onceMore } from './once-more.ts';

test('who calls while it is under way has it done once more, and all are told of the end', async () => {
	const ends: (() => void)[] = [];
	let begun = 0;
	const ask = onceMore(() => (begun++, new Promise((end) => ends.push(end))));
	const first = ask();
	const others = [ask(), ask()];
	expect(begun).toBe(1);
	ends.shift()?.();
	await expect.poll(() => begun).toBe(2);
	ends.shift()?.();
	await Promise.all([first, ...others]);
	expect(begun).toBe(2);
	const next = ask();
	expect(begun).toBe(3);
	ends.shift()?.();
	await next;
});

test('work that fails does not keep others from theirs', async () => {
	let fails = true;
	const ask = onceMore(() => (fails ? Promise.reject(new Error('no')) : Promise.resolve()));
	await expect(ask()).rejects.toThrow('no');
	fails = false;
	await ask();
});
