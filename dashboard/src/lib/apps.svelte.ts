import { api } from './api/client.ts';
import { Problem } from './api/problem.ts';
import type { App, Page } from './api/types.ts';
import { live } from './live.svelte.ts';
import { onceMore } from './once-more.ts';

/** The apps that somebody may see: what the navigation and every page of an app read. */
class Apps {
	all = $state.raw<App[]>([]);
	loaded = $state(false);
	problem = $state.raw<Problem | null>(null);

	constructor() {
		live.listen([{ kind: 'app' }, { kind: 'domain' }], () => void this.load());
	}

	/** Fetch all of them. */
	readonly load = onceMore(async () => {
		try {
			const all: App[] = [];
			let cursor: string | null = null;
			do {
				const query: Record<string, string | number | null> = { limit: 200, cursor };
				const page: Page<App> = await api('GET /apps', { query });
				all.push(...page.items);
				cursor = page.next_cursor;
			} while (cursor);
			this.all = all;
			this.problem = null;
		} catch (error) {
			this.problem = Problem.of(error);
		}
		this.loaded = true;
	});

	named(slug: string): App | undefined {
		return this.all.find((app) => app.slug === slug || app.id === slug);
	}
}

export const apps = new Apps();
