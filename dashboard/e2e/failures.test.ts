import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Browser } from 'playwright-core';
import { EDITOR, launch, look, signIn, tab, write } from './browser.ts';
import { Server } from './server.ts';

let server: Server;
let browser: Browser;

beforeAll(async () => {
	[server, browser] = await Promise.all([Server.start(), launch()]);
});
afterAll(async () => {
	await browser?.close();
	await server?.stop();
});

test('a script is written, with its error at its place, and run', async () => {
	await server.api('POST /apps', { slug: 'shop', name: 'Web shop' });
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/scripts`);
	await page.getByRole('heading', { name: 'No scripts yet' }).waitFor();
	await look(page, 'scripts-empty');
	await page.getByRole('button', { name: 'New script' }).click();
	await page.getByLabel('Name').fill('greet');
	await page.getByRole('button', { name: 'Create the script' }).click();
	await page.locator(EDITOR).waitFor();

	// A diagnostic where the mistake is.
	await write(page, 'let x = 1;\nlet y = ;\nx');
	await page.locator('.cm-lintRange-error').waitFor();
	const line = page.locator('.cm-line', { has: page.locator('.cm-lintRange-error') });
	expect(await line.first().innerText()).toBe('let y = ;');
	await look(page, 'script-diagnostic');
	await page.getByRole('button', { name: 'Deploy' }).click();
	await page.getByRole('alert').waitFor();

	await write(page, 'log::info("greeted");\n#{ hello: ctx.request.body.name }');
	await page.getByLabel('Body').fill('{"name": "Ada"}');
	await page.getByRole('button', { name: 'Run', exact: true }).click();
	const result = page.getByTestId('run-result');
	await result.waitFor();
	expect(await result.innerText()).toContain('"hello": "Ada"');
	expect(await result.innerText()).toContain('greeted');
	await result.getByText('draft', { exact: true }).waitFor();
	await look(page, 'script-run');

	// That deployed nothing, and neither does a draft that fails; to deploy is another button.
	type Script = { id: string; version: number; source: string };
	const { items } = await server.api<{ items: Script[] }>('GET /apps/shop/scripts');
	const live = () => server.api<Script>(`GET /scripts/${items[0]?.id}`);
	expect(await live()).toMatchObject({ version: 1, source: expect.stringContaining('let name') });
	await write(page, 'throw "only a draft"');
	await page.locator(EDITOR).press('Control+Enter');
	await result.getByTestId('script-error').getByText('only a draft').waitFor();
	expect((await live()).version).toBe(1);
	await write(page, 'log::info("greeted");\n#{ hello: ctx.request.body.name }');
	await page.getByRole('button', { name: 'Deploy' }).click();
	await page.getByText('Version 2, live').waitFor();
	await page.getByRole('button', { name: 'Run', exact: true }).click();
	await result.getByText('draft', { exact: true }).waitFor({ state: 'detached' });
	expect(await live()).toMatchObject({ version: 2, source: expect.stringContaining('greeted') });
	const runs = await server.api<{ items: { script_version: number }[] }>('GET /apps/shop/executions');
	expect(runs.items.map(({ script_version }) => script_version)).toEqual([2, 0, 0]);

	// Versions: what changed, and back with one click.
	await page.getByRole('link', { name: 'Versions' }).click();
	await page.locator('.cm-deletedChunk').first().waitFor();
	await look(page, 'script-versions');
	await page.getByRole('button', { name: 'Roll back to v1' }).click();
	await page.getByText('Rolled back to version 1').waitFor();
	await page.getByRole('link', { name: 'Limits and name' }).click();
	await look(page, 'script-limits');
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('what failed is found, fixed and replayed, until nothing is left', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	const app = await server.api<{ id: string }>('POST /apps', { slug: 'orders', name: 'Orders' });
	const source = 'let event = ctx.event;\nlet order = event.kv.value;\nthrow `no price for ${order.id}`;';
	await server.api('POST /apps/orders/scripts', { name: 'bill', source });
	await server.api('POST /apps/orders/triggers', {
		kind: 'kv',
		name: 'bill-orders',
		script: 'bill',
		collection: 'orders',
		retry: { attempts_max: 2, base_ms: 1 }
	});
	await page.goto(`${server.url}/admin/apps/orders/dead-letters`);
	await page.getByRole('heading', { name: 'No unresolved dead letters' }).waitFor();
	await look(page, 'dead-letters-empty');
	for (let n = 1; n <= 7; n++) {
		await server.api(`PUT /apps/orders/kv/orders/o${n}`, { id: `o${n}`, price: n });
	}
	await server.until(async () => {
		const counts = await server.api<{ by_state: Record<string, number> }>(
			'GET /apps/orders/dead-letters/counts'
		);
		return counts.by_state.unresolved === 7;
	});
	await page.reload();
	await page.getByRole('row').nth(7).waitFor();
	expect(await page.getByTestId('dead-letter-badge').innerText()).toContain('7');
	await look(page, 'dead-letters');

	// The filter is in the address.
	await page.getByRole('searchbox').fill('for o3');
	await page.waitForURL('**error=for+o3');
	await page.getByRole('row').nth(1).waitFor();
	await expect.poll(() => page.getByRole('row').count()).toBe(2);

	await page.getByRole('link', { name: 'no price for o3' }).click();
	await page.getByRole('link', { name: 'Open the script at this line' }).waitFor();
	await look(page, 'dead-letter');

	// Three clicks: to the line, save and replay all.
	await page.getByRole('link', { name: 'Open the script at this line' }).click();
	await page.locator(EDITOR).waitFor();
	await page.locator('.cm-activeLine', { hasText: 'throw' }).waitFor();
	await write(page, 'let order = ctx.event.kv.value;\nlog::info(`billed ${order.id}`);');
	await page.getByRole('button', { name: 'Deploy and replay all 7' }).waitFor();
	await look(page, 'script-fixing');
	await page.getByRole('button', { name: 'Deploy and replay all 7' }).click();
	await page.getByText('7 dead letters replayed').waitFor();
	await expect.poll(() => page.getByTestId('dead-letter-badge').count()).toBe(0);
	await server.until(async () => {
		const page = await server.api<{ items: { script_id: string }[] }>(
			'GET /apps/orders/executions?outcome=answered'
		);
		return page.items.length === 7;
	});

	await page.goto(`${server.url}/admin/apps/orders/executions`);
	await page.getByRole('row').nth(20).waitFor();
	await look(page, 'executions');
	await page.getByLabel('Outcome').selectOption('answered');
	await expect.poll(() => page.getByRole('row').count()).toBe(8);
	await page.getByRole('row').nth(1).getByRole('link').click();
	await page.getByText(/billed o\d/).waitFor();
	await page.getByText('What this request led to').waitFor();
	await look(page, 'execution');
	expect(app.id).toBeTruthy();
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a failure shows as a badge in every tab, without a reload', async () => {
	await server.api('POST /apps', { slug: 'mail', name: 'Mail' });
	await server.api('POST /apps/mail/scripts', { name: 'send', source: 'throw "no relay"' });
	await server.api('POST /apps/mail/triggers', {
		kind: 'kv',
		script: 'send',
		collection: 'outgoing',
		retry: { attempts_max: 1, base_ms: 1 }
	});
	const tabs = await Promise.all([tab(browser), tab(browser)]);
	for (const { page } of tabs) await signIn(page, server);
	await tabs[1].page.goto(`${server.url}/admin/apps/mail/dead-letters`);
	await tabs[1].page.getByRole('heading', { name: 'No unresolved dead letters' }).waitFor();
	await server.api('PUT /apps/mail/kv/outgoing/m1', 1);
	const badges = tabs.map(({ page }) =>
		page.getByTestId('dead-letter-badge').filter({ hasText: '1' }).waitFor()
	);
	await Promise.all(badges);
	await tabs[1].page.getByRole('link', { name: 'no relay' }).waitFor();
	for (const { page, wrong } of tabs) {
		expect(wrong).toEqual([]);
		await page.context().close();
	}
});

test('an execution is watched while it runs', async () => {
	const waits = 'while kv::collection("gates").get("open") == () { sleep(0.05) }';
	const source = `log::info("first line"); ${waits} log::info("second line"); 1`;
	await server.api('POST /apps/shop/scripts', { name: 'wait', source });
	const route = { path: '/wait', script: 'wait', method: 'GET', dispatch_mode: 'async' };
	await server.api('POST /apps/shop/routes', route);
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	const accepted = (await (await fetch(`${server.url}/wait`)).json()) as { execution_id: string };
	await page.goto(`${server.url}/admin/apps/shop/executions/${accepted.execution_id}`);
	await page.getByText('It waits or runs').waitFor();
	await page.getByText('first line').waitFor();
	expect(await page.getByText('second line').count()).toBe(0);
	await look(page, 'execution-running');
	await server.api('PUT /apps/shop/kv/gates/open', true);
	await page.getByText('What this request led to').waitFor();
	await page.getByText('second line').waitFor();
	expect(await page.getByText('first line').count()).toBe(1);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('many are replayed at once, after they were counted', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/mail/dead-letters`);
	await page.getByRole('button', { name: 'Resolve…' }).click();
	await page.getByTestId('bulk-count').filter({ hasText: '1' }).waitFor();
	await look(page, 'dead-letters-resolve');
	await page.getByRole('button', { name: 'Resolve', exact: true }).click();
	await page.getByText('1 dead letter resolved as ignored').waitFor();
	await page.getByRole('heading', { name: 'No unresolved dead letters' }).waitFor();
	await page.getByLabel('State').selectOption('resolved');
	await page.getByRole('row', { name: 'no relay' }).waitFor();
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a long list draws what is in view, and goes on as it is scrolled', async () => {
	const RUNS = 5_000;
	// The oldest app without hosts is the one that answers here.
	await server.api('POST /apps/shop/scripts', { name: 'nop', source: '1' });
	await server.api('POST /apps/shop/routes', { path: '/nop', script: 'nop', method: 'GET' });
	for (let n = 0; n < RUNS; n += 100) {
		const runs = Array.from({ length: 100 }, async () => {
			const answer = await fetch(`${server.url}/nop`);
			return (await answer.text()) && answer.ok;
		});
		expect((await Promise.all(runs)).every(Boolean)).toBe(true);
	}
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/executions?invocation_type=http`);
	await page.getByRole('row').nth(20).waitFor();
	const rows = page.locator('[role=row][aria-rowindex]');
	for (let reached = 0; reached < RUNS; ) {
		await page.mouse.wheel(0, 20_000);
		await expect
			.poll(async () => Number(await rows.last().getAttribute('aria-rowindex')) - 1)
			.toBeGreaterThan(reached);
		reached = Number(await rows.last().getAttribute('aria-rowindex')) - 1;
		expect(await rows.count()).toBeLessThan(80);
	}
	expect(await rows.last().getAttribute('aria-rowindex')).toBe(String(RUNS + 1));
	// What runs meanwhile comes above, and whoever reads keeps their place.
	const read = rows.nth(20);
	const [where, place] = [await read.getByRole('link').getAttribute('href'), await read.boundingBox()];
	const index = Number(await read.getAttribute('aria-rowindex'));
	await fetch(`${server.url}/nop`);
	const same = page.locator('[role=row][aria-rowindex]', { has: page.locator(`[href="${where}"]`) });
	await expect.poll(async () => Number(await same.getAttribute('aria-rowindex'))).toBe(index + 1);
	expect((await same.boundingBox())?.y).toBe(place?.y);
	expect(wrong).toEqual([]);
	await page.context().close();
});
