import { api, type Answer } from './api/client.ts';
import { live } from './live.svelte.ts';
import { onceMore } from './once-more.ts';

/** How an app does, over the last hour. */
export type Health = Answer<'GET /overview'>['items'][number];

/** Every app at a glance: the badges of the navigation and the list of apps. */
class HealthOfApps {
	#of = $state.raw(new Map<string, Health>());

	constructor() {
		const kinds = ['dead_letter', 'execution'];
		live.listen(
			kinds.map((kind) => ({ kind })),
			() => void this.load()
		);
	}

	get all(): Health[] {
		return [...this.#of.values()];
	}

	of(appId: string): Health | undefined {
		return this.#of.get(appId);
	}

	/** A failure leaves what was known: what a badge says is no reason to disturb. */
	readonly load = onceMore(async () => {
		const answer = await api('GET /overview').catch(() => null);
		if (answer) this.#of = new Map(answer.items.map((health) => [health.app_id, health]));
	});
}

export const health = new HealthOfApps();
