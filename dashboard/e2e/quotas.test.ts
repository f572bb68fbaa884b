import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Browser } from 'playwright-core';
import { launch, look, signIn, tab } from './browser.ts';
import { Server } from './server.ts';

let server: Server;
let browser: Browser;

beforeAll(async () => {
	[server, browser] = await Promise.all([Server.start(true, { PICLOUD_KV_BYTES_MAX: '64KiB' }), launch()]);
});
afterAll(async () => {
	await browser?.close();
	await server?.stop();
});

test('an app whose keys and values have nearly used up their quota is told so, and what to do', async () => {
	await server.api('POST /apps', { slug: 'shop', name: 'Web shop' });
	for (let n = 0; n < 15; n++) await server.api(`PUT /apps/shop/kv/notes/${n}`, 'x'.repeat(4096));
	await server.api('POST /gc');
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop`);
	const kept = (name: string) => page.getByRole('listitem').filter({ has: page.getByRole('meter', { name }) });
	const values = kept('Keys and values');
	await values.getByText('15 keys').waitFor();
	await values.getByText(/^60\.\d KiB of 64 KiB$/).waitFor();
	await values.getByText('Once it is full, new values are refused').getByText('kv_bytes_max').waitFor();
	const meter = values.getByRole('meter');
	expect(await meter.getAttribute('data-tone')).toBe('warn');
	expect(Number(await meter.getAttribute('aria-valuenow'))).toBeGreaterThanOrEqual(90);
	expect(await kept('Messages').innerText()).toContain('0 B of 1 GiB');
	expect(await kept('Messages').getByRole('meter').getAttribute('data-tone')).toBe('plain');
	await page.getByText(/^measured (just now|\d+ ?[sm].* ago)$/).waitFor();
	await look(page, 'overview-nearly-full');
	expect(wrong).toEqual([]);
	await page.context().close();
});
