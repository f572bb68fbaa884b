import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Browser, Page } from 'playwright-core';
import { launch, look, tab } from './browser.ts';
import { Provider } from './provider.ts';
import { Server } from './server.ts';

let provider: Provider;
let server: Server;
let browser: Browser;
/** By its other name, the server is another site than the provider, as in life. */
let here: string;

beforeAll(async () => {
	[provider, browser] = await Promise.all([Provider.start(), launch()]);
	server = await Server.start(true, {
		PICLOUD_OIDC_ISSUER: provider.issuer,
		PICLOUD_OIDC_CLIENT_ID: 'picloud',
		PICLOUD_OIDC_CLIENT_SECRET: 'a secret of the test',
		PICLOUD_OIDC_NAME: 'Acme',
		PICLOUD_OIDC_ROLES: 'ops=admin',
		PICLOUD_OIDC_DEFAULT_ROLE: 'none'
	});
	here = server.url.replace('127.0.0.1', 'localhost');
	await provider.tell('test', { redirect_uris: [`${here}/api/v1/auth/oidc/callback`] });
});
afterAll(async () => {
	await browser?.close();
	await server?.stop();
	await provider?.stop();
});

/** Go to a page, and sign in at the provider as somebody in these groups. */
async function signInThere(page: Page, groups: string[]) {
	const sub = `id-of-${groups.join('-')}`;
	await provider.tell('people', { sub, preferred_username: sub, groups });
	await page.goto(`${here}/admin/users`);
	await page.getByRole('link', { name: 'Sign in with Acme' }).waitFor();
	await look(page, 'login-oidc');
	await page.getByRole('link', { name: 'Sign in with Acme' }).click();
	await page.locator('[name=login]').fill(sub);
	await page.locator('[name=password]').fill('any');
	await page.getByRole('button', { name: 'Sign-in' }).click();
	await page.getByRole('button', { name: 'Continue' }).click();
}

test('somebody signs in at a provider of another site, and is where they wanted to be', async () => {
	const { page, wrong } = await tab(browser);
	await signInThere(page, ['ops']);
	await page.getByRole('heading', { name: 'Users' }).waitFor();
	expect(page.url()).toBe(`${here}/admin/users`);
	await page.getByText('id-of-ops').first().waitFor();
	// The provider's own pages ask for a font of another host.
	expect(wrong.filter((text) => !text.includes('ERR_NAME_NOT_RESOLVED'))).toEqual([]);
	await page.context().close();
});

test('a session that ends in a dialog is renewed at the provider, and the dialog does its work', async () => {
	const { page, wrong } = await tab(browser);
	await signInThere(page, ['ops']);
	await page.getByRole('heading', { name: 'Users' }).waitFor();
	await page.goto(`${here}/admin/`);
	await page.getByRole('button', { name: 'New app' }).click();
	await page.getByLabel('Name').fill('Late');
	// Signed in at the provider they are still.
	await page.context().clearCookies({ domain: 'localhost' });
	await page.getByRole('button', { name: 'Create the app' }).click();
	const asked = page.getByRole('dialog', { name: 'Sign in again' });
	await asked.getByRole('link', { name: 'Sign in with Acme' }).waitFor();
	await look(page, 'expired-oidc');
	const opened = page.context().waitForEvent('page');
	await asked.getByRole('link', { name: 'Sign in with Acme' }).click();
	const there = await opened;
	await there.getByRole('heading', { name: 'You are signed in' }).waitFor();
	await page.waitForURL('**/admin/apps/late');
	expect(await page.getByRole('dialog').count()).toBe(0);
	expect(wrong.filter((text) => !text.includes('ERR_NAME_NOT_RESOLVED'))).toEqual([]);
	await page.context().close();
});

test('whoever may not is told why, and comes back', async () => {
	const { page } = await tab(browser);
	await signInThere(page, ['others']);
	await page.getByText('none of your groups at the provider may use this instance').waitFor();
	await page.getByRole('link', { name: 'Back' }).click();
	await page.getByLabel('Password').waitFor();
	await page.context().close();
});
