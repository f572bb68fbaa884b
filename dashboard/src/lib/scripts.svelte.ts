import { api } from './api/client.ts';
import type { Script } from './api/types.ts';
import { currentApp } from './app.ts';
import { Query } from './query.svelte.ts';

/** Every script of the app that the address names: names for lists, choices for forms. */
export class Scripts {
	#all = new Query<Script[]>(
		async (signal) => {
			const app = currentApp().id;
			const query = { limit: 200 };
			return (await api('GET /apps/{app}/scripts', { path: { app }, query, signal })).items;
		},
		() => [{ kind: 'script', appId: currentApp().id }]
	);

	get all(): Script[] {
		return this.#all.value ?? [];
	}

	/** What a script is called; its id's end where it is gone. */
	name(id: string): string {
		return this.all.find((script) => script.id === id)?.name ?? `…${id.slice(-8)}`;
	}
}
