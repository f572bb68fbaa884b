import { untrack } from 'svelte';
import { Problem } from './api/problem.ts';
import type { Page } from './api/types.ts';
import { live, type Topic } from './live.svelte.ts';
import { presence } from './presence.svelte.ts';
import { toasts } from './toasts.svelte.ts';

/** How long an answer is waited for before a change begins anew without it, in milliseconds. */
const PATIENCE_MS = 30_000;

/**
 * One fetch at a time. A change while one is under way has it done once more afterwards: what is
 * under way may not know of it, and to begin anew at each change would never end where changes come
 * faster than answers.
 */
class Fetching {
	readonly #controller = new AbortController();
	readonly #begunAt = Date.now();
	/** Ends with the last of it. */
	ended: Promise<void> = Promise.resolve();

	get signal(): AbortSignal {
		return this.#controller.signal;
	}

	/** Whether it goes on in a reasonable time: then there is no need to begin another. */
	get isAlive(): boolean {
		return !this.signal.aborted && Date.now() - this.#begunAt < PATIENCE_MS;
	}

	abort(): void {
		this.#controller.abort();
	}
}

/** Something that is fetched when what it depends on changes, and again when it is told of a change. */
export class Query<T> {
	value = $state.raw<T>();
	problem = $state.raw<Problem | null>(null);
	loading = $state(true);
	#fetch: (signal: AbortSignal) => Promise<T>;
	#running: Fetching | null = null;
	#again = false;

	/** `fetch` runs in an effect: what it reads before its first `await` makes it run again. */
	constructor(fetch: (signal: AbortSignal) => Promise<T>, topics: () => Topic[] = () => []) {
		this.#fetch = fetch;
		$effect(() => {
			void this.#begin();
			return () => this.#running?.abort();
		});
		$effect(() => live.listen(topics(), () => void untrack(() => this.refresh())));
		$effect(() =>
			presence.onBack(() => {
				if (this.problem) void this.refresh();
			})
		);
	}

	/** Fetch it anew, after what is under way. */
	refresh(): Promise<void> {
		if (!this.#running?.isAlive) return this.#begin();
		this.#again = true;
		return this.#running.ended;
	}

	#begin(): Promise<void> {
		this.#running?.abort();
		this.#again = false;
		const running = new Fetching();
		this.#running = running;
		running.ended = this.#load(running);
		return running.ended;
	}

	async #load(running: Fetching): Promise<void> {
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
		this.#running = null;
		if (this.#again) return this.#begin();
		this.loading = false;
	}
}

/** What a list fetches at a time, the most urgent first. */
const STEPS = ['first', 'next', 'renewed'] as const;
type Step = (typeof STEPS)[number];

/** A list of the API, page by page. */
export class List<T extends { id: string }> {
	items = $state.raw<T[]>([]);
	problem = $state.raw<Problem | null>(null);
	/** Whether nothing of it was ever there. */
	first = $state(true);
	loading = $state(true);
	#cursor: string | null = null;
	#fetch: (cursor: string | null, signal: AbortSignal) => Promise<Page<T>>;
	#running: Fetching | null = null;
	/** What is being fetched. */
	#step: Step | null = null;
	/** What is to be fetched after what is under way. */
	#wanted: Step[] = [];

	/** As `Query`; a change fetches the first page anew, and keeps what follows it. */
	constructor(
		fetch: (cursor: string | null, signal: AbortSignal) => Promise<Page<T>>,
		topics: () => Topic[] = () => []
	) {
		this.#fetch = fetch;
		$effect(() => {
			this.#wanted = [];
			void this.#begin('first');
			return () => this.#running?.abort();
		});
		$effect(() => live.listen(topics(), () => void untrack(() => this.#ask('renewed'))));
		$effect(() =>
			presence.onBack(() => {
				if (this.problem) void this.refresh();
			})
		);
	}

	get more(): boolean {
		return this.#cursor !== null;
	}

	/** Fetch it anew from the first page, after what is under way. */
	refresh(): Promise<void> {
		return this.#ask('first');
	}

	/** Fetch the next page, if there is one. */
	async next(): Promise<void> {
		if (this.#cursor !== null && this.#step !== 'next') await this.#ask('next');
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

	#ask(step: Step): Promise<void> {
		if (!this.#running?.isAlive) return this.#begin(step);
		if (!this.#wanted.includes(step)) this.#wanted.push(step);
		return this.#running.ended;
	}

	#begin(step: Step): Promise<void> {
		this.#running?.abort();
		this.#wanted = this.#wanted.filter((it) => it !== step && !(step === 'first' && it === 'renewed'));
		const running = new Fetching();
		this.#running = running;
		running.ended = this.#load(step, running);
		return running.ended;
	}

	async #load(step: Step, running: Fetching): Promise<void> {
		this.#step = step;
		untrack(() => (this.loading = true));
		const cursor = step === 'next' ? this.#cursor : null;
		try {
			const page = await this.#fetch(cursor, running.signal);
			if (running.signal.aborted) return;
			const rest = step === 'renewed' ? this.#following(page) : [];
			this.items = [...(step === 'next' ? this.items : []), ...page.items, ...rest];
			if (rest.length === 0) this.#cursor = page.next_cursor;
			this.problem = null;
		} catch (error) {
			if (running.signal.aborted) return;
			this.problem = Problem.of(error);
		}
		this.first = false;
		this.#step = null;
		this.#running = null;
		// Whoever scrolls does not wait for changes to end.
		const after = STEPS.find((it) => this.#wanted.includes(it) && (it !== 'next' || this.#cursor !== null));
		if (after) return this.#begin(after);
		this.loading = false;
	}

	/** What stays behind a first page that was fetched anew, where it joins: nobody loses their place. */
	#following({ items, next_cursor }: Page<T>): T[] {
		// All of it: whatever stood behind is gone.
		if (next_cursor === null) return [];
		const last = items.at(-1)?.id;
		const joint = this.items.findIndex(({ id }) => id === last);
		return joint < 0 ? [] : this.items.slice(joint + 1);
	}
}
