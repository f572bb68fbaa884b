import { untrack } from 'svelte';
import { Problem } from './api/problem.ts';
import type { Page } from './api/types.ts';
import { live, type Topic } from './live.svelte.ts';
import { toasts } from './toasts.svelte.ts';

/** Something that is fetched when what it depends on changes, and again when it is told of a change. */
export class Query<T> {
	value = $state.raw<T>();
	problem = $state.raw<Problem | null>(null);
	loading = $state(true);
	#fetch: (signal: AbortSignal) => Promise<T>;
	#running: AbortController | null = null;

	/** `fetch` runs in an effect: what it reads before its first `await` makes it run again. */
	constructor(fetch: (signal: AbortSignal) => Promise<T>, topics: () => Topic[] = () => []) {
		this.#fetch = fetch;
		$effect(() => {
			void this.refresh();
			return () => this.#running?.abort();
		});
		$effect(() => live.listen(topics(), () => void untrack(() => this.refresh())));
	}

	async refresh(): Promise<void> {
		untrack(() => this.#running?.abort());
		const running = new AbortController();
		this.#running = running;
		untrack(() => (this.loading = true));
		try {
			const value = await this.#fetch(running.signal);
			if (running.signal.aborted) return;
			this.value = value;
			this.problem = null;
		} catch (error) {
			if (running.signal.aborted) return;
			this.problem = Problem.of(error);
		}
		this.loading = false;
	}
}

/** A list of the API, page by page. */
export class List<T extends { id: string }> {
	items = $state.raw<T[]>([]);
	problem = $state.raw<Problem | null>(null);
	/** Whether nothing of it was ever there. */
	first = $state(true);
	loading = $state(true);
	#cursor: string | null = null;
	#fetch: (cursor: string | null, signal: AbortSignal) => Promise<Page<T>>;
	#running: AbortController | null = null;

	/** As `Query`; a change fetches the first page anew, and keeps what follows it. */
	constructor(
		fetch: (cursor: string | null, signal: AbortSignal) => Promise<Page<T>>,
		topics: () => Topic[] = () => []
	) {
		this.#fetch = fetch;
		$effect(() => {
			void this.refresh();
			return () => this.#running?.abort();
		});
		$effect(() => live.listen(topics(), () => void untrack(() => this.#renew())));
	}

	get more(): boolean {
		return this.#cursor !== null;
	}

	refresh(): Promise<void> {
		return this.#load(null);
	}

	/** Fetch the next page, if there is one. */
	async next(): Promise<void> {
		if (this.#cursor !== null && !this.loading) await this.#load(this.#cursor);
	}

	/** Show a change of an item while it is made; take it back, and say why, where that fails. */
	async change(item: T, change: Partial<T>, make: () => Promise<unknown>): Promise<void> {
		const put = (next: T) => {
			this.items = this.items.map((one) => (one.id === item.id ? next : one));
		};
		put({ ...item, ...change });
		try {
			await make();
		} catch (error) {
			put(item);
			toasts.fail(error);
		}
	}

	/** Fetch the first page, and go on with what is here where it joins: nobody loses their place. */
	#renew(): Promise<void> {
		return this.#load(null, ({ items, next_cursor }) => {
			// All of it: whatever stood behind is gone.
			if (next_cursor === null) return [];
			const last = items.at(-1)?.id;
			const joint = this.items.findIndex(({ id }) => id === last);
			return joint < 0 ? [] : this.items.slice(joint + 1);
		});
	}

	/** Fetch a page; the first one takes the place of all but what `follows` it. */
	async #load(cursor: string | null, follows: (page: Page<T>) => T[] = () => []): Promise<void> {
		untrack(() => this.#running?.abort());
		const running = new AbortController();
		this.#running = running;
		untrack(() => (this.loading = true));
		try {
			const page = await this.#fetch(cursor, running.signal);
			if (running.signal.aborted) return;
			const rest = cursor === null ? follows(page) : [];
			this.items = [...(cursor === null ? [] : this.items), ...page.items, ...rest];
			if (rest.length === 0) this.#cursor = page.next_cursor;
			this.problem = null;
		} catch (error) {
			if (running.signal.aborted) return;
			this.problem = Problem.of(error);
		}
		this.first = false;
		this.loading = false;
	}
}
