import { exec } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Browser } from 'playwright-core';
import { EDITOR, enterPassword, launch, look, signIn, tab, write } from './browser.ts';
import { formOf, policyOf } from '../src/lib/routes/cors.ts';
import { Server } from './server.ts';

let server: Server;
let browser: Browser;

/** An app in use. */
beforeAll(async () => {
	[server, browser] = await Promise.all([Server.start(), launch()]);
	await server.api('POST /apps', { slug: 'shop', name: 'Web shop' });
	await server.api('POST /apps', { slug: 'blog', name: 'Blog', hosts: ['blog.example.com'] });
	const script = (name: string, source: string) =>
		server.api('POST /apps/shop/scripts', { name, source });
	await script('hello', '#{ hello: ctx.request.query.get_or("name", "world") }');
	await script('bill', 'if ctx.event.kv.value.price == () { throw "no price" }');
	await script('slow', 'let n = 0; while n < 40000 { n += 1 } #{ n: n }');
	const route = (path: string, script: string, more = {}) =>
		server.api('POST /apps/shop/routes', { path, script, method: 'GET', ...more });
	await route('/hello', 'hello');
	await route('/orders/{id}', 'hello');
	await route('/slow', 'slow', { dispatch_mode: 'async', idempotency: { ttl_s: 3600, keep_answer: false } });
	await server.api('POST /apps/shop/triggers', {
		kind: 'kv',
		name: 'bill-orders',
		script: 'bill',
		collection: 'orders',
		retry: { attempts_max: 1, base_ms: 1 }
	});
	await script('notify', 'ctx.event.pubsub.message');
	for (const topic of ['orders:paid', 'room:*']) {
		const name = `hears-${topic.split(':')[0]}`;
		await server.api('POST /apps/shop/triggers', { kind: 'pubsub', script: 'notify', name, topic });
	}
	await server.api('PUT /apps/shop/topics/room:*', {
		auth_mode: 'token',
		cors_origins: ['https://shop.example.com']
	});
	await server.api('PUT /apps/shop/topics/poll', { auth_mode: 'public', retention_s: 604_800 });
	await server.api('PUT /apps/shop/topics/desk', { auth_mode: 'session' });
	for (let n = 1; n <= 12; n++) {
		const value = n % 4 ? { price: n * 3, items: ['tea'] } : { items: [] };
		await server.api(`PUT /apps/shop/kv/orders/order:${n}`, value);
		await server.api(`PUT /apps/shop/kv/users/user:${n}`, { name: `user ${n}` });
	}
	for (let n = 0; n < 30; n++) await fetch(`${server.url}/hello?name=${n}`);
	for (let n = 0; n < 5; n++) await fetch(`${server.url}/slow`);
	await server.api('PUT /apps/shop/secrets/STRIPE_KEY', { value: 'sk_test_1234567890' });
	await server.until(async () => {
		const counts = await server.api<{ by_state: Record<string, number> }>(
			'GET /apps/shop/dead-letters/counts'
		);
		return counts.by_state.unresolved === 3;
	});
});
afterAll(async () => {
	await browser?.close();
	await server?.stop();
});

test('every page is there, in light, in dark and on a phone, and axe finds nothing', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.getByRole('link', { name: '3 dead letters' }).waitFor();
	await look(page, 'apps');
	const pages: [string, string, string][] = [
		['apps/shop', 'overview', '.u-over'],
		['apps/shop/scripts', 'scripts', '[role=row] >> nth=3'],
		['apps/shop/routes', 'routes', '[role=row] >> nth=3'],
		['apps/shop/triggers', 'triggers', '[role=row] >> nth=1'],
		['apps/shop/topics', 'topics', '[role=row] >> nth=4'],
		['apps/blog/topics', 'topics-empty', 'text=No topics yet'],
		['apps/shop/kv', 'kv', '[role=row] >> nth=12'],
		['apps/shop/secrets', 'secrets', '[role=row] >> nth=1'],
		['apps/shop/members', 'members-empty', 'text=No members yet'],
		['apps/shop/audit', 'app-audit', '[role=row] >> nth=5'],
		['apps/shop/settings', 'settings', 'text=Delete the app'],
		['apps/blog', 'overview-empty', 'text=Nothing ran in this time'],
		['users', 'users', '[role=row] >> nth=1'],
		['users?tab=invitations', 'invitations-empty', 'text=No open invitations'],
		['audit', 'audit', '[role=row] >> nth=5'],
		['instance', 'instance', 'text=Check again'],
		['account', 'sessions', '[role=row] >> nth=1'],
		['account?tab=keys', 'keys-empty', 'text=No API keys yet'],
		['account?tab=password', 'password', 'text=Change the password']
	];
	for (const [path, name, there] of pages) {
		await page.goto(`${server.url}/admin/${path}`);
		await page.locator(there).first().waitFor();
		await look(page, name);
	}
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a route is made, and found for a request', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/routes`);
	await page.getByRole('button', { name: 'New route' }).click();
	await page.getByLabel('Path', { exact: true }).fill('/hello');
	await page.getByRole('button', { name: 'Create the route' }).click();
	// It conflicts with one that is there; the dialog stays and says so.
	await page.getByRole('dialog').getByRole('alert').waitFor();
	await page.getByLabel('Path', { exact: true }).fill('/things/{id}');
	await look(page, 'route-new');
	await page.getByRole('button', { name: 'Create the route' }).click();
	await page.getByRole('row', { name: '/things/{id}' }).waitFor();
	await page.getByLabel('Path or address').fill('/things/42');
	await page.getByRole('button', { name: 'Find the route' }).click();
	await page.getByText('id = 42').waitFor();
	await look(page, 'route-match');
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a repeated request runs once where the form of its route says so', async () => {
	const { page, wrong } = await tab(browser);
	await server.api('POST /apps/shop/scripts', { name: 'count', source: 'ctx.execution_id' });
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/routes`);
	await page.getByRole('button', { name: 'New route' }).click();
	await page.getByRole('dialog').getByLabel('Method').selectOption('POST');
	await page.getByLabel('Path', { exact: true }).fill('/count');
	await page.getByLabel('Script').selectOption('count');
	const repeated = page.getByLabel('Repeated requests run once');
	expect(await repeated.isChecked()).toBe(false);
	await repeated.check();
	await page.getByLabel('A key holds for').fill('3600');
	await look(page, 'route-idempotency');
	await page.getByRole('button', { name: 'Create the route' }).click();
	const row = page.getByRole('row', { name: '/count' });
	await row.getByText('idempotent').waitFor();
	type Route = { id: string; path: string; idempotency: unknown };
	const route = async () => {
		const { items } = await server.api<{ items: Route[] }>('GET /apps/shop/routes');
		return items.find(({ path }) => path === '/count');
	};
	expect((await route())?.idempotency).toEqual({ ttl_s: 3600, keep_answer: true });
	const call = async () => {
		const headers = { 'idempotency-key': 'once' };
		return (await fetch(`${server.url}/count`, { method: 'POST', headers })).text();
	};
	expect(await call()).toBe(await call());

	await page.getByRole('button', { name: 'More of POST /count' }).click();
	await page.getByRole('menuitem', { name: 'Edit' }).click();
	expect(await page.getByLabel('A key holds for').inputValue()).toBe('3600');
	await page.getByLabel('Keep the answer').uncheck();
	await page.getByRole('button', { name: 'Save' }).click();
	await page.getByRole('dialog').waitFor({ state: 'detached' });
	expect((await route())?.idempotency).toEqual({ ttl_s: 3600, keep_answer: false });
	await page.getByRole('button', { name: 'More of POST /count' }).click();
	await page.getByRole('menuitem', { name: 'Edit' }).click();
	await repeated.uncheck();
	await page.getByRole('button', { name: 'Save' }).click();
	await row.getByText('idempotent').waitFor({ state: 'detached' });
	expect((await route())?.idempotency).toBe(null);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('an empty app shows a command that calls this very app', async () => {
	const { page } = await tab(browser);
	await signIn(page, server);
	await server.api('POST /apps', { slug: 'attic', name: 'Attic' });
	await page.goto(`${server.url}/admin/apps/blog`);
	const shown = page.getByText(`curl -i -H 'host: blog.example.com' '${server.url}/hello'`);
	await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
	await shown.locator('..').getByRole('button', { name: 'Copy' }).click();
	await page.getByRole('button', { name: 'Copied' }).waitFor();
	const command = await page.evaluate(() => navigator.clipboard.readText());
	await page.goto(`${server.url}/admin/apps/attic`);
	await page.getByText('No address leads to this app yet').waitFor();
	await look(page, 'overview-no-host');
	await server.api('DELETE /apps/attic');
	// Run as it was copied, it reaches this app, though the default app has the same path.
	await server.api('POST /apps/blog/scripts', { name: 'hello', source: '"the blog says hello"' });
	await server.api('POST /apps/blog/routes', { path: '/hello', script: 'hello', method: 'GET' });
	const { stdout } = await promisify(exec)(command);
	expect(stdout).toContain(' 200 ');
	expect(stdout).toContain('the blog says hello');
	await page.context().close();
});

test('pages of other origins may call a route once it says which', async () => {
	await server.api('POST /apps/shop/routes', { path: '/elsewhere', script: 'hello', method: 'GET' });
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/routes`);
	await page.getByRole('button', { name: 'More of GET /elsewhere' }).click();
	await page.getByRole('menuitem', { name: 'Edit' }).click();
	await page.getByLabel('Pages of other origins may call it').check();
	const origins = page.getByLabel('Origins', { exact: true });
	await origins.fill('shop.example.com');
	await page.getByRole('button', { name: 'Save' }).click();
	await page.getByText('is no origin').waitFor();
	await look(page, 'route-cors');
	await origins.fill('https://shop.example.com\nhttps://desk.example.com');
	await page.getByRole('button', { name: 'Save' }).click();
	await page.getByRole('row', { name: '/elsewhere' }).getByText('CORS').waitFor();
	// `fetch` may not name an origin.
	const allowed = await page.context().request.fetch(`${server.url}/elsewhere`, {
		method: 'OPTIONS',
		headers: { origin: 'https://desk.example.com', 'access-control-request-method': 'GET' }
	});
	expect([allowed.status(), allowed.headers()['access-control-allow-origin']]).toEqual([
		204,
		'https://desk.example.com'
	]);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a topic is opened once its name is typed, heard, and closed', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/topics`);
	await page.getByRole('row', { name: 'orders:paid' }).getByText('internal').waitFor();
	// Another tab, which is only told of it: the topic moves up in its list, and down again.
	const second = await page.context().newPage();
	await second.goto(page.url());
	const told = second.getByRole('row', { name: 'orders:paid' });
	await told.getByText('internal').waitFor();
	await page.getByRole('button', { name: 'More of orders:paid' }).click();
	await page.getByRole('menuitem', { name: 'Open to subscribers' }).click();
	await page.getByLabel('Anybody').check();
	await page.getByText('This opens it to the outside').waitFor();
	const open = page.getByRole('button', { name: 'Open the topic' });
	expect(await open.isDisabled()).toBe(true);
	await look(page, 'topic-open');
	await page.getByLabel('Type orders:paid to confirm').fill('orders:paid');
	await open.click();
	await page.getByRole('row', { name: 'orders:paid' }).getByText('public').waitFor();
	await told.getByText('public').waitFor();
	expect(await told.count()).toBe(1);

	await page.getByRole('link', { name: 'orders:paid' }).click();
	await page.getByText('listening').waitFor();
	await page.getByLabel('Message', { exact: true }).fill('{"order": 7}');
	await page.getByRole('button', { name: 'Publish' }).click();
	await page.getByText('{"order":7}').waitFor();
	await server.api('POST /apps/shop/topics/orders:paid/messages', { message: { order: 8 } });
	await page.getByText('{"order":8}').waitFor();
	const said = page.getByRole('list', { name: 'Messages, the newest first' });
	expect(await said.getByRole('listitem').count()).toBe(2);
	await look(page, 'topic-messages');
	// What is kept is there for whoever comes later.
	await page.reload();
	await page.getByText('{"order":7}').waitFor();

	await page.getByRole('button', { name: 'More of orders:paid' }).click();
	await page.getByRole('menuitem', { name: 'Close' }).click();
	await page.getByLabel('Type orders:paid to confirm').fill('orders:paid');
	await page.getByRole('button', { name: 'Close the topic' }).click();
	await page.getByText('orders:paid is internal').waitFor();
	await told.getByText('internal').waitFor();
	expect(await told.count()).toBe(1);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a switch shows at once, and goes back where the server refuses', async () => {
	const { page } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/triggers`);
	const row = page.getByRole('row', { name: 'bill-orders' });
	await row.getByText('on', { exact: true }).waitFor();
	let answer = () => {};
	const asked = new Promise<void>((done) => (answer = done));
	await page.route('**/pause', async (route) => {
		await asked;
		await route.fulfill({
			status: 503,
			contentType: 'application/problem+json',
			body: JSON.stringify({ title: 'Unavailable', detail: 'the database is away' })
		});
	});
	await page.getByRole('button', { name: 'More of bill-orders' }).click();
	await page.getByRole('menuitem', { name: 'Pause' }).click();
	await row.getByText('paused').waitFor();
	answer();
	await page.getByText('the database is away').waitFor();
	await row.getByText('on', { exact: true }).waitFor();
	await page.context().close();
});

test('a key is changed, with what that fires, and deleted once its name is typed', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/kv?collection=orders`);
	await page.getByRole('searchbox').fill('order:1');
	await expect.poll(() => page.getByRole('row').count()).toBe(5);
	await page.getByRole('button', { name: 'order:10' }).click();
	await page.locator(EDITOR).waitFor();
	await page.getByText('bill-orders').waitFor();
	await write(page, '{"price": 99}');
	await look(page, 'kv-entry');
	await page.getByRole('button', { name: 'Save' }).click();
	await page.getByRole('dialog').waitFor({ state: 'detached' });
	expect(await server.api('GET /apps/shop/kv/orders/order:10')).toEqual({ price: 99 });
	await page.getByRole('button', { name: 'order:11' }).click();
	await page.getByRole('button', { name: 'Delete this key' }).click();
	const remove = page.getByRole('button', { name: 'Delete the key' });
	expect(await remove.isDisabled()).toBe(true);
	await page.getByLabel('Type order:11 to confirm').fill('order:11');
	await remove.click();
	await expect.poll(() => page.getByRole('button', { name: 'order:11' }).count()).toBe(0);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a key is reached whatever it is called, and so is its collection', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	const at = (collection: string, key: string) =>
		`/apps/shop/kv-value?${new URLSearchParams({ collection, key })}`;
	for (const collection of ['.', '..', 'plain']) {
		for (const key of ['.', '..', '%2e', 'a/../b']) {
			await server.api(`PUT ${at(collection, key)}`, { was: key });
			await page.goto(`${server.url}/admin/apps/shop/kv?${new URLSearchParams({ collection })}`);
			await page.getByRole('button', { name: key, exact: true }).click();
			await page.locator(EDITOR, { hasText: `"was": "${key}"` }).waitFor();
			await write(page, '{"is": 1}');
			await page.getByRole('button', { name: 'Save' }).click();
			await page.getByRole('dialog').waitFor({ state: 'detached' });
			expect(await server.api(`GET ${at(collection, key)}`)).toEqual({ is: 1 });
		}
	}
	await page.getByRole('button', { name: '..', exact: true }).last().click();
	await page.getByRole('button', { name: 'Delete this key' }).click();
	await page.getByLabel('Type .. to confirm').fill('..');
	await page.getByRole('button', { name: 'Delete the key' }).click();
	await expect
		.poll(() => server.api(`GET ${at('plain', '..')}`).then(() => 'there', String))
		.toContain('404');
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a value that nobody could read says that it was repaired', async () => {
	await server.api('PUT /apps/shop/kv/old/whole', 1);
	await server.api('PUT /apps/shop/kv/old/broken', 2);
	server.sql(`update kv set value = '{"n": 1e999}' where key = 'broken'`);
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/kv?collection=old`);
	const broken = page.getByRole('row', { name: 'broken' });
	await broken.getByText('repaired').waitFor();
	await broken.getByText('"1e999"').waitFor();
	expect(await page.getByText('repaired').count()).toBe(1);
	await look(page, 'kv-repaired');
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('the form of CORS begins with what the API takes where nothing is said', async () => {
	type Schema = { properties: Record<string, { default?: unknown }> };
	type Document = { components: { schemas: Record<string, Schema> } };
	const document = await server.api<Document>('GET /openapi.json');
	const { headers, exposed_headers, max_age_s } = document.components.schemas.RouteCors?.properties ?? {};
	const usual = { headers: headers?.default, exposed_headers: exposed_headers?.default, max_age_s: max_age_s?.default };
	expect(policyOf({ ...formOf(null), on: true })).toMatchObject(usual);
});

/** What JavaScript's own numbers would change, as it may stand in somebody's JSON. */
const ODD = '"id": 9007199254740993, "price": 10.0, "rate": 1e+2';

/** The text of the API's answer, as it came. */
async function textOf(path: string, body?: string): Promise<string> {
	const headers = { authorization: `Bearer ${server.token}`, 'content-type': 'application/json' };
	const init = body === undefined ? { headers } : { method: 'PUT', headers, body };
	const answer = await fetch(`${server.url}/api/v1${path}`, init);
	expect(answer.ok).toBe(true);
	return answer.text();
}

test('what an editor does not touch stays as it was written', async () => {
	await textOf('/apps/shop/kv/ledger/a', `{${ODD}, "note": "old"}`);
	const stored = await textOf('/apps/shop/kv/ledger/a');
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/kv?collection=ledger`);
	await page.getByRole('row').filter({ hasText: '9007199254740993' }).filter({ hasText: '10.0' }).waitFor();
	await page.getByRole('button', { name: 'a', exact: true }).click();
	await page.locator(EDITOR).waitFor();
	await write(page, (await page.locator(EDITOR).innerText()).replace('"old"', '"new"'));
	await look(page, 'kv-numbers');
	await page.getByRole('button', { name: 'Save' }).click();
	await page.getByRole('dialog').waitFor({ state: 'detached' });
	expect(JSON.stringify(await textOf('/apps/shop/kv/ledger/a')).replace(/\\n| /g, '')).toBe(
		JSON.stringify(stored.replace('"old"', '"new"')).replace(/\\n| /g, '')
	);

	// The payload of a dead letter, which is sent again with another note, and fails again.
	await server.api('POST /apps/shop/scripts', { name: 'book', source: 'throw ctx.event.kv.value.note' });
	await server.api('POST /apps/shop/triggers', {
		kind: 'kv',
		name: 'book',
		script: 'book',
		collection: 'ledger',
		retry: { attempts_max: 1, base_ms: 1 }
	});
	await textOf('/apps/shop/kv/ledger/b', `{${ODD}, "note": "old"}`);
	const failed = async (note: string) => {
		const path = `/apps/shop/dead-letters?error=${note}&state=unresolved`;
		const { items } = await server.api<{ items: { id: string }[] }>(`GET ${path}`);
		return items[0]?.id;
	};
	await server.until(async () => (await failed('old')) !== undefined);
	await page.goto(`${server.url}/admin/apps/shop/dead-letters/${await failed('old')}`);
	await page.locator(EDITOR).waitFor();
	const payload = await page.locator(EDITOR).innerText();
	expect(payload).toContain('9007199254740993');
	await write(page, payload.replace('"old"', '"once more"'));
	await page.getByRole('button', { name: 'Replay with this payload' }).click();
	await server.until(async () => (await failed('once')) !== undefined);
	const again = await textOf(`/dead-letters/${await failed('once')}`);
	for (const part of ['"id":9007199254740993', '"price":10.0', '"note":"once more"']) {
		expect(again.replaceAll(' ', '')).toContain(part.replaceAll(' ', ''));
	}

	// What is sent by hand, and what is answered and logged.
	await server.api('POST /apps/shop/scripts', {
		name: 'echo',
		source: 'log::info("got", #{ it: ctx.request.body }); ctx.request.body'
	});
	await page.goto(`${server.url}/admin/apps/shop/scripts`);
	await page.getByRole('link', { name: 'echo' }).click();
	await page.locator(EDITOR).waitFor();
	await page.getByLabel('Body').fill(`{${ODD}}`);
	await page.getByRole('button', { name: 'Run', exact: true }).click();
	const result = page.getByTestId('run-result');
	await result.getByLabel('Answer').filter({ hasText: '9007199254740993' }).waitFor();
	await result.getByRole('listitem').filter({ hasText: '"id":9007199254740993' }).waitFor();
	await page.getByRole('link', { name: 'Execution', exact: true }).click();
	await page.getByRole('listitem').filter({ hasText: '"id":9007199254740993' }).waitFor();

	await page.goto(`${server.url}/admin/apps/shop/topics?topic=desk`);
	await page.getByText('listening').waitFor();
	await page.getByLabel('Message', { exact: true }).fill(`{${ODD}}`);
	await page.getByRole('button', { name: 'Publish' }).click();
	await page.getByText('"id":9007199254740993,"price":10.0').waitFor();
	// The next test counts what there is.
	const { items } = await server.api<{ items: { id: string; name: string }[] }>('GET /apps/shop/triggers');
	await server.api(`DELETE /triggers/${items.find(({ name }) => name === 'book')?.id}`);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('of two tabs that edit a script the second is told, keeps its text and decides', async () => {
	const script = await server.api<{ id: string }>('POST /apps/shop/scripts', { name: 'shared', source: '1' });
	const source = async () => (await server.api<{ source: string }>(`GET /scripts/${script.id}`)).source;
	const tabs = await Promise.all([tab(browser), tab(browser)]);
	for (const { page } of tabs) {
		await signIn(page, server);
		await page.goto(`${server.url}/admin/apps/shop/scripts/${script.id}`);
		await page.locator(EDITOR).waitFor();
	}
	const [{ page: theirs }, { page: mine }] = tabs;
	await write(theirs, '"what they wrote"');
	await theirs.getByRole('button', { name: 'Deploy' }).click();
	await theirs.getByText('Version 2, live').waitFor();

	await write(mine, '"what I wrote"');
	const conflict = mine.getByTestId('conflict');
	const editor = mine.getByLabel('Source of shared');
	// However often it is tried.
	for (let times = 0; times < 2; times++) {
		await mine.getByRole('button', { name: 'Deploy', exact: true }).click();
		await conflict.getByText('Somebody changed this since you opened it').waitFor();
		await conflict.locator('.cm-deletedChunk', { hasText: 'what they wrote' }).waitFor();
		expect(await editor.innerText()).toContain('what I wrote');
		expect(await source()).toBe('"what they wrote"');
	}
	await look(mine, 'script-conflict');
	await conflict.getByRole('button', { name: 'Save mine over theirs' }).click();
	await mine.getByText('Version 3, live').waitFor();
	expect(await source()).toBe('"what I wrote"');

	await write(theirs, '"and once more"');
	await theirs.getByRole('button', { name: 'Deploy', exact: true }).click();
	await theirs.getByRole('button', { name: 'Drop mine, take theirs' }).click();
	await expect.poll(() => theirs.getByLabel('Source of shared').innerText()).toContain('what I wrote');
	await theirs.getByText('Version 3, live').waitFor();
	expect(tabs.flatMap(({ wrong }) => wrong)).toEqual([]);
	for (const { page } of tabs) await page.context().close();
});

test('who changes a route that changed meanwhile sees what changed, and decides', async () => {
	const made = { path: '/shared', script: 'hello', method: 'GET' };
	const route = await server.api<{ id: string }>('POST /apps/shop/routes', made);
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/routes`);
	await page.getByRole('button', { name: 'More of GET /shared' }).click();
	await page.getByRole('menuitem', { name: 'Edit' }).click();
	await page.getByLabel('Mode').selectOption('async');
	await server.api(`PATCH /routes/${route.id}`, { path: '/moved' });
	await page.getByRole('button', { name: 'Save' }).click();
	const conflict = page.getByTestId('conflict');
	await conflict.getByText('/moved').waitFor();
	expect(await page.getByLabel('Mode').inputValue()).toBe('async');
	await look(page, 'route-conflict');
	await conflict.getByRole('button', { name: 'Save mine over theirs' }).click();
	await page.getByRole('dialog').waitFor({ state: 'detached' });
	const now = await server.api(`GET /routes/${route.id}`);
	expect(now).toMatchObject({ path: '/shared', dispatch_mode: 'async' });
	await server.api(`DELETE /routes/${route.id}`);
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a new key does not replace one that is there, unless that is meant', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/kv?collection=users`);
	await page.getByRole('button', { name: 'New key' }).click();
	await page.getByLabel('Key', { exact: true }).fill('user:1');
	await write(page, '{"name": "another"}');
	await page.getByRole('button', { name: 'Save' }).click();
	const conflict = page.getByTestId('conflict');
	await conflict.getByText('There is one of this name already').waitFor();
	expect(await server.api('GET /apps/shop/kv/users/user:1')).toEqual({ name: 'user 1' });
	await look(page, 'kv-conflict');
	await conflict.getByRole('button', { name: 'Save mine over theirs' }).click();
	await page.getByRole('dialog').waitFor({ state: 'detached' });
	expect(await server.api('GET /apps/shop/kv/users/user:1')).toEqual({ name: 'another' });
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('somebody who was invited looks, and sees no button that would be refused', async () => {
	const invited = await server.api<{ token: string }>('POST /invitations', {
		role: 'member',
		apps: { shop: 'viewer' }
	});
	const { page, wrong } = await tab(browser);
	await page.goto(`${server.url}/admin/join#${invited.token}`);
	await page.getByLabel('Name').fill('ada');
	await page.getByLabel('Password').fill('a long enough password');
	await look(page, 'join');
	await page.getByRole('button', { name: 'Join' }).click();
	await page.getByRole('heading', { name: 'Apps' }).waitFor();
	await page.getByRole('link', { name: 'Web shop' }).click();
	await page.locator('.u-over').first().waitFor();
	const entries = await page.getByRole('navigation', { name: 'App' }).getByRole('link').allInnerTexts();
	expect(entries).toEqual(['Overview', 'Executions', 'Scripts', 'Routes', 'Key-value']);
	for (const [at, button] of [
		['scripts', 'New script'],
		['routes', 'New route'],
		['kv', 'New key']
	]) {
		await page.goto(`${server.url}/admin/apps/shop/${at}`);
		await page.getByRole('row').nth(1).waitFor();
		expect(await page.getByRole('button', { name: button }).count()).toBe(0);
	}
	await page.goto(`${server.url}/admin/apps/shop/scripts`);
	await page.getByRole('link', { name: 'hello' }).click();
	await page.getByText('Read only').waitFor();
	expect(await page.getByRole('button', { name: 'Run' }).count()).toBe(0);
	// What an app keeps from viewers, and pages that are not for them, are told in words.
	await page.goto(`${server.url}/admin/apps/shop/dead-letters`);
	await page.getByRole('heading', { name: 'Dead letters: for app admins only' }).waitFor();
	await look(page, 'closed');
	await page.goto(`${server.url}/admin/apps/shop/executions?outcome=threw`);
	await page.getByText('no price').first().waitFor();
	const hide = (hides: boolean) =>
		server.api('PATCH /apps/shop', { hide_payloads_from_viewers: hides });
	await hide(true);
	await page.reload();
	await page.getByText('hidden from viewers').first().waitFor();
	expect(await page.getByText('no price').count()).toBe(0);
	await page.getByRole('row').nth(1).getByRole('link').click();
	await page.getByText('Log lines and errors are hidden').waitFor();
	expect(await page.getByRole('alert').count()).toBe(0);
	await look(page, 'execution-hidden');
	await hide(false);
	const token = await server.signIn('ada', 'a long enough password');
	const refused = server.api('POST /apps/shop/scripts', { name: 'x', source: '1' }, token);
	await expect(refused).rejects.toThrow('403');
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a session that ends in the middle of an edit keeps the text, and the next one saves it', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/shop/scripts`);
	await page.getByRole('link', { name: 'hello' }).click();
	await page.locator(EDITOR).waitFor();
	await write(page, '#{ hello: "edited" }');
	await page.context().clearCookies();
	await page.getByRole('button', { name: 'Deploy' }).click();
	await page.getByRole('dialog', { name: 'Sign in again' }).waitFor();
	await look(page, 'expired');
	await enterPassword(page, page.getByText('Version 2, live'));
	await page.getByRole('dialog').waitFor({ state: 'detached' });
	expect(await page.locator(EDITOR).innerText()).toContain('edited');
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('a session that ends while somebody reads is renewed where they are, in every tab', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	const second = await page.context().newPage();
	await second.goto(`${server.url}/admin/apps/shop/kv`);
	await second.getByRole('row').nth(1).waitFor();
	await page.goto(`${server.url}/admin/apps/shop`);
	await page.locator('.u-over').first().waitFor();
	await page.context().clearCookies();
	const asked = page.getByRole('dialog', { name: 'Sign in again' });
	await page.getByRole('link', { name: 'Secrets' }).click();
	await asked.waitFor();
	await second.getByRole('button', { name: 'users' }).click();
	await second.getByRole('dialog', { name: 'Sign in again' }).waitFor();
	// Whoever does not want to is told what is missing, and asked again when they go on.
	await asked.getByRole('button', { name: 'Close' }).click();
	await page.getByRole('alert').getByText('Sign in first').first().waitFor();
	await page.getByRole('button', { name: 'Try again' }).first().click();
	await asked.getByLabel('Password').fill('a wrong one');
	await asked.getByRole('button', { name: 'Sign in' }).click();
	await asked.getByRole('alert').waitFor();
	await enterPassword(asked, page.getByRole('row', { name: 'STRIPE_KEY' }));
	await second.getByRole('dialog').waitFor({ state: 'detached' });
	await second.getByRole('button', { name: 'user:7' }).waitFor();
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('what an app is called, and what it keeps from viewers, is set on its page', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	await page.goto(`${server.url}/admin/apps/blog/settings`);
	await page.getByLabel('Hide payloads from viewers').check();
	await page.getByLabel('Host', { exact: true }).fill('news.example.com');
	await page.getByRole('button', { name: 'Claim the host' }).click();
	await page.getByRole('button', { name: 'Give up news.example.com' }).waitFor();
	// The host that was claimed meanwhile is no conflict: it was claimed on the same page.
	await page.getByRole('button', { name: 'Save' }).click();
	await page.getByText('Saved').waitFor();
	const app = await server.api('GET /apps/blog');
	expect(app).toMatchObject({ hide_payloads_from_viewers: true, name: 'Blog' });
	await server.api('PATCH /apps/blog', { name: 'Diary' });
	await page.getByLabel('Name').fill('Journal');
	await page.getByRole('button', { name: 'Save' }).click();
	const conflict = page.getByTestId('conflict');
	await conflict.getByText('Diary').waitFor();
	await look(page, 'settings-conflict');
	await conflict.getByRole('button', { name: 'Drop mine, take theirs' }).click();
	expect(await page.getByLabel('Name').inputValue()).toBe('Diary');
	await server.api('PATCH /apps/blog', { name: 'Blog', hosts: ['blog.example.com'] });
	expect(wrong).toEqual([]);
	await page.context().close();
});

test('an execution is replayed as a new request', async () => {
	const { page, wrong } = await tab(browser);
	await signIn(page, server);
	const ran = 'invocation_type=http_async&limit=1';
	const { items } = await server.api<{ items: { id: string }[] }>(`GET /apps/shop/executions?${ran}`);
	await page.goto(`${server.url}/admin/apps/shop/executions/${items[0]?.id}`);
	await page.getByRole('link', { name: 'Replay as a new request' }).click();
	await page.getByText('It runs anew').waitFor();
	await expect.poll(() => page.getByLabel('Path and query').inputValue()).toBe('/slow');
	await look(page, 'execution-replay');
	await page.getByRole('button', { name: 'Run', exact: true }).click();
	await page.getByTestId('run-result').getByText('40000').waitFor();
	expect(wrong).toEqual([]);
	await page.context().close();
});
