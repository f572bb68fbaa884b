import { afterEach, expect, test, vi } from 'vitest';
import { api } from './client.ts';

afterEach(() => vi.unstubAllGlobals());

test('what a browser would take out of an address is not asked for', async () => {
	const asked: string[] = [];
	vi.stubGlobal('fetch', (url: string) => {
		asked.push(url);
		return Promise.resolve(new Response(null, { status: 204 }));
	});
	const remove = (topic: string) => api('DELETE /apps/{app}/topics/{topic}', { path: { app: 'shop', topic } });
	for (const topic of ['.', '..']) await expect(remove(topic)).rejects.toThrow('no address');
	for (const topic of ['...', '%2e', 'a/..']) await remove(topic);
	const at = '/api/v1/apps/shop/topics/';
	expect(asked).toEqual([`${at}...`, `${at}%252e`, `${at}a%2F..`]);
});
