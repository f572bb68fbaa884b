import { api, type Answer } from './api/client.ts';
import { live } from './live.svelte.ts';

/** How an app does, over the last hour. */
export type Health = Answer<'GET /overview'>['items'][number];

/** Every app at a glance: the badges of the navigation and the list of apps. */
class HealthOfApps {
	#of = $state.raw(new Map<string, Health>());
	#asked = 0;

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
	async load(): Promise<void> {
		const asked = ++this.#asked;
		const answer = await api('GET /overview').catch(() => null);
		if (answer && asked === this.#asked) {
			this.#of = new Map(answer.items.map((health) => [health.app_id, health]));
		}
	}
}

export const health = new HealthOfApps();
