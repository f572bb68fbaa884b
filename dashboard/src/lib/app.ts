import { page } from '$app/state';
import type { App } from './api/types.ts';
import { apps } from './apps.svelte.ts';

/** The app that the address names: only for pages below `apps/[app]`, whose layout waits for it. */
export function currentApp(): App {
	const app = apps.named(page.params.app ?? '');
	if (!app) throw new Error('this page lies in no app');
	return app;
}
