import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Browser } from 'playwright-core';
import { launch, look, signIn, tab } from './browser.ts';
import { Server } from './server.ts';

let server: Server;
let browser: Browser;

beforeAll(async () => {
	[server, browser] = await Promise.all([Server.start(), launch()]);
	await server.api('POST /apps', { slug: 'shop', name: 'Web shop' });
	await server.api('POST /apps/shop/scripts', { name: 'hello', source: '1' });
	await server.api('POST /apps/shop/routes', { path: '/hello', script: 'hello', method: 'GET' });
	await fetch(`${server.url}/hello`);
});
afterAll(async () => {
	await browser?.close();
	await server?.stop();
});

test.each([false, true])('an address that does not exist says so, once: signed in is %s', async (isSignedIn) => {
	const { page, wrong } = await tab(browser);
	if (isSignedIn) await signIn(page, server);
	let loads = 0;
	page.on('request', (request) => {
		if (request.isNavigationRequest()) loads++;
	});
	const addresses = ['nowhere', 'apps/shop/nothing/at/all', 'login/x', 'index.html/x', '%'];
	for (const [nth, address] of addresses.entries()) {
		await page.goto(`${server.url}/admin/${address}`);
		await page.getByRole('heading', { name: 'There is no such page' }).waitFor();
		// One, and one more for what is no address at all.
		expect(loads).toBeLessThanOrEqual(nth + (address === '%' ? 2 : 1));
	}
	await look(page, 'nowhere');
	// From a page of ours, too.
	await page.evaluate(() => {
		const link = document.createElement('a');
		link.href = '/admin/still/nowhere';
		document.body.append(link);
		link.click();
	});
	await page.getByText('Nothing is at /admin/still/nowhere').waitFor();
	await page.getByRole('link', { name: 'To the apps' }).click();
	const there = isSignedIn ? page.getByRole('heading', { name: 'Apps' }) : page.getByLabel('Password');
	await there.waitFor();
	expect(loads).toBeLessThanOrEqual(addresses.length + 1);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a server that is down is told of, on every page, until it is back', async () => {
	const { page } = await tab(browser);
	// Before the first page sets its timers.
	await page.clock.install();
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/executions`);
	const trouble = page.getByTestId('trouble');
	const ages = page.getByRole('row').nth(1).locator('time');
	await ages.waitFor();
	expect(await trouble.count()).toBe(0);
	// While it is there, time goes by.
	const young = await ages.innerText();
	await page.clock.fastForward(3_600_000);
	await expect.poll(() => ages.innerText()).toContain('1h');
	expect(young).not.toContain('1h');
	await server.kill();
	await trouble.getByText('The server does not answer').waitFor();
	await look(page, 'away');
	// What is seen stays, and gets no older by its looks.
	const age = await ages.innerText();
	await page.clock.fastForward(7_200_000);
	// What came due meanwhile has run: the timers are of the page's own clock.
	expect(await page.evaluate(() => Date.now())).toBeGreaterThan(Date.now() + 10_000_000);
	expect(await ages.innerText()).toBe(age);
	// A page that was never open, of which nothing was fetched.
	await page.getByRole('link', { name: 'Routes' }).click();
	await page.getByRole('heading', { name: 'The server does not answer' }).waitFor();
	await look(page, 'away-page');
	await server.launch();
	await page.clock.resume();
	await page.getByRole('row', { name: '/hello' }).waitFor({ timeout: 90_000 });
	await trouble.waitFor({ state: 'detached' });
	await page.context().close();
});

test('what failed while the server was down is fetched when it is back, and changes are heard again', async () => {
	const { page } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/routes`);
	await page.getByRole('row', { name: '/hello' }).waitFor();
	await page.goto(`${server.url}/admin/apps/shop/scripts`);
	await page.getByRole('row', { name: 'hello' }).waitFor();
	await server.kill();
	await page.getByTestId('trouble').waitFor();
	await page.getByRole('link', { name: 'Overview' }).click();
	await server.launch();
	await page.getByText('Executions').first().waitFor({ timeout: 90_000 });
	await page.getByTestId('trouble').waitFor({ state: 'detached', timeout: 90_000 });
	await page.getByRole('link', { name: 'Scripts' }).click();
	await page.getByRole('row', { name: 'hello' }).waitFor();
	expect(await page.getByRole('alert').count()).toBe(0);
	await server.api('POST /apps/shop/scripts', { name: 'made-since', source: '1' });
	await page.getByRole('row', { name: 'made-since' }).waitFor({ timeout: 90_000 });
	await page.context().close();
});

test('a server that hangs is told of, too', async () => {
	const { page } = await tab(browser);
	await signIn(page, server);
	await page.getByRole('link', { name: 'Web shop' }).waitFor();
	server.signal('SIGSTOP');
	try {
		// It is asked now and then; this is as if the next time had come.
		await page.evaluate(() => dispatchEvent(new Event('online')));
		await page.getByTestId('trouble').waitFor();
	} finally {
		server.signal('SIGCONT');
	}
	await page.getByTestId('trouble').waitFor({ state: 'detached', timeout: 90_000 });
	await page.context().close();
});
