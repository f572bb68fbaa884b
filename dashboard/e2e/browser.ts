import { mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { chromium, type Browser, type Locator, type Page } from 'playwright-core';
import { expect } from 'vitest';
import { TARGET } from './program.ts';
import { PASSWORD, type Server } from './server.ts';

const SHOTS =
	process.env.PICLOUD_SCREENSHOTS ?? join(TARGET, 'screenshots');
const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

/** Debian's Chromium; as root, as in a container, it has no sandbox. */
export function launch(): Promise<Browser> {
	return chromium.launch({
		executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
		args: process.getuid?.() === 0 ? ['--no-sandbox'] : []
	});
}

/** A tab of somebody who has just come, with everything that went wrong in it. */
export async function tab(browser: Browser): Promise<{ page: Page; wrong: string[] }> {
	const context = await browser.newContext({
		viewport: { width: 1280, height: 860 },
		reducedMotion: 'reduce'
	});
	const page = await context.newPage();
	// Nothing waits so long but on a machine that does much else.
	page.setDefaultTimeout(60_000);
	const wrong: string[] = [];
	page.on('pageerror', (error) => wrong.push(String(error)));
	page.on('console', (message) => {
		const isRefusal = message.text().includes('status of 4');
		if (message.type() === 'error' && !isRefusal) wrong.push(message.text());
	});
	return { page, wrong };
}

/** Sign in through the page. */
export async function signIn(page: Page, server: Server, name = 'owner', password = PASSWORD) {
	await page.goto(`${server.url}/admin/`);
	await page.getByLabel('Name').fill(name);
	await enterPassword(page, page.getByRole('heading', { name: 'Apps' }), password);
}

/**
 * Enter the password of whoever is named until `seen` is there. After ten in a row one name is let
 * in each ten seconds, and tests come faster on a fast machine.
 */
export async function enterPassword(form: Page | Locator, seen: Locator, password = PASSWORD) {
	const signedIn = async () => {
		await form.getByLabel('Password').fill(password);
		await form.getByRole('button', { name: 'Sign in' }).click();
		return seen.waitFor({ timeout: 3_000 }).then(
			() => true,
			() => seen.isVisible()
		);
	};
	await expect.poll(signedIn, { timeout: 60_000 }).toBe(true);
}

/** Where the text of an editor is. */
export const EDITOR = '[data-ready=true] .cm-content';

/** Replace the text of the editor as somebody at a keyboard does. */
export async function write(page: Page, text: string): Promise<void> {
	await page.locator(EDITOR).focus();
	await page.keyboard.press('Control+a');
	await page.keyboard.press('Backspace');
	await page.keyboard.insertText(text);
}

/** Write down how a page looks: in light, in dark, on a phone; and let axe look, in both themes. */
export async function look(page: Page, name: string): Promise<void> {
	mkdirSync(SHOTS, { recursive: true });
	for (const theme of ['light', 'dark'] as const) {
		await page.emulateMedia({ colorScheme: theme });
		await page.screenshot({ path: join(SHOTS, `${name}-${theme}.png`) });
		expect(await violations(page), `${name} in ${theme}`).toEqual([]);
	}
	await page.setViewportSize({ width: 390, height: 844 });
	await page.emulateMedia({ colorScheme: 'light' });
	await page.screenshot({ path: join(SHOTS, `${name}-phone.png`) });
	const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
	expect(overflow, `${name} is wider than a phone`).toBeLessThanOrEqual(0);
	await page.setViewportSize({ width: 1280, height: 860 });
}

/** What axe finds against WCAG 2.2 AA. */
async function violations(page: Page): Promise<string[]> {
	if (!(await page.evaluate(() => 'axe' in window))) {
		// By the debugger, which the page's policy does not bind.
		const { readFileSync } = await import('node:fs');
		await page.evaluate(readFileSync(AXE, 'utf8'));
	}
	return page.evaluate(async () => {
		const { axe } = window as unknown as { axe: typeof import('axe-core') };
		const tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'];
		const { violations } = await axe.run(document, { runOnly: tags });
		return violations.map(({ id, nodes }) => {
			const where = nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`);
			return `${id}: ${where.join(' | ')}`;
		});
	});
}
