import { expect, test } from 'vitest';
import { Problem } from './api/problem.ts';
import { differences, Edit } from './edit.svelte.ts';

const changed = new Problem(412, { type: 'urn:picloud:problem:precondition_failed' });
const gone = new Problem(404, { type: 'urn:picloud:problem:not_found' });

/** A resource as a server keeps it. */
function resource(text: string | null) {
	const it = {
		text,
		read: async () => {
			if (it.text === null) throw gone;
			return { answer: { text: it.text }, etag: `"${it.text}"` };
		},
		write: (next: string) => async (ifMatch: string | null) => {
			if (ifMatch !== null && ifMatch !== `"${it.text}"`) throw changed;
			it.text = next;
		}
	};
	return it;
}

test('what somebody else changed meanwhile is not overwritten, until that is meant', async () => {
	const it = resource('first');
	const edit = new Edit<{ text: string }>();
	await edit.begin(it.read);
	it.text = 'theirs';
	await expect(edit.save(it.write('mine'))).rejects.toThrow(changed);
	expect([it.text, edit.theirs]).toEqual(['theirs', await it.read()]);
	// Whoever saves again without looking is told again.
	await expect(edit.save(it.write('mine'))).rejects.toThrow(changed);
	edit.accept();
	it.text = 'theirs once more';
	await expect(edit.save(it.write('mine'))).rejects.toThrow(changed);
	edit.accept();
	await edit.save(it.write('mine'));
	expect([it.text, edit.theirs]).toEqual(['mine', null]);
});

test('what somebody else removed meanwhile is made anew, where that is meant', async () => {
	const it = resource('first');
	const edit = new Edit<{ text: string }>();
	await edit.begin(it.read);
	it.text = null;
	await expect(edit.save(it.write('mine'))).rejects.toThrow(changed);
	expect(edit.theirs).toBe('gone');
	edit.accept();
	expect(edit.value).toBe(null);
	await edit.save(it.write('mine'));
	expect(it.text).toBe('mine');
});

test('what is made does not replace what has the name already, until that is meant', async () => {
	const it = resource('theirs');
	const edit = new Edit<{ text: string }>();
	edit.create();
	await expect(edit.save(it.write('mine'), it.read)).rejects.toThrow(Problem);
	expect([it.text, edit.theirs]).toEqual(['theirs', await it.read()]);
	edit.accept();
	await edit.save(it.write('mine'), it.read);
	expect(it.text).toBe('mine');
	it.text = null;
	edit.create();
	await edit.save(it.write('new'), it.read);
	expect(it.text).toBe('new');
});

test('differences are told in words, without what changes every time', () => {
	const then = { path: '/a', cors: null, updated_at: 'yesterday', version: 1 };
	const now = { path: '/b', cors: { origins: ['*'] }, updated_at: 'today', version: 2 };
	expect(differences(then, now)).toEqual([
		{ name: 'Path', then: '/a', now: '/b' },
		{ name: 'Cors', then: 'none', now: '{"origins":["*"]}' }
	]);
	expect(differences([1], [2])).toEqual([{ name: 'Value', then: '[1]', now: '[2]' }]);
	expect(differences(now, now)).toEqual([]);
});
