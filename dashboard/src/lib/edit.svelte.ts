import type { Tagged } from './api/client.ts';
import { Problem } from './api/problem.ts';
import { words } from './format.ts';
import { toasts } from './toasts.svelte.ts';

type Read<T> = () => Promise<Tagged<T>>;

/**
 * Something that somebody changes in a form. It is saved over what they saw, and over nothing else: where
 * somebody was faster nothing is written, and whoever fills the form in sees that and decides.
 */
export class Edit<T> {
	/** Whether its form is open, where that is a dialog. */
	open = $state(false);
	/** As it was when the form began, or as it was saved since; none where something is made. */
	seen = $state.raw<Tagged<T> | null>(null);
	/** As somebody else left it meanwhile, while it is not decided what to do. */
	theirs = $state.raw<Tagged<T> | 'gone' | null>(null);
	#read: Read<T> | null = null;

	/** What is changed, as it was seen. */
	get value(): T | null {
		return this.seen?.answer ?? null;
	}

	/** Open the form for something new. */
	create(): void {
		this.#read = this.seen = this.theirs = null;
		this.open = true;
	}

	/** Open the form for what `read` finds; a row of a list may be older than that, and has no tag. */
	async change(read: Read<T>): Promise<void> {
		try {
			await this.begin(read);
			this.open = true;
		} catch (error) {
			toasts.fail(error);
		}
	}

	/** Read what is to be changed. Throws a `Problem`. */
	async begin(read: Read<T>): Promise<void> {
		this.seen = await read();
		this.theirs = null;
		this.#read = read;
	}

	/**
	 * Write, with the tag of what was seen. Throws a `Problem`; what is there is `theirs` where somebody was
	 * faster. `there` looks whether something that is made, under a name that was typed, is there already.
	 */
	async save<A>(write: (ifMatch: string | null) => Promise<A>, there?: Read<T>): Promise<A> {
		try {
			if (!this.seen && there) await this.#checkFree(there);
			const saved = await write(this.seen?.etag ?? null);
			this.theirs = null;
			return saved;
		} catch (error) {
			if (Problem.of(error).kind === 'precondition_failed') this.theirs = await this.#now();
			throw error;
		}
	}

	/** Whoever fills the form in has seen what theirs is: what is saved from then on replaces it. */
	accept(): void {
		this.seen = this.theirs === 'gone' ? null : this.theirs;
		this.theirs = null;
	}

	/** Throws where `there` finds something. */
	async #checkFree(there: Read<T>): Promise<void> {
		this.#read = there;
		try {
			await there();
		} catch (error) {
			if (Problem.of(error).status === 404) return;
			throw error;
		}
		throw new Problem(412, { type: 'urn:picloud:problem:precondition_failed' });
	}

	async #now(): Promise<typeof this.theirs> {
		try {
			return (await this.#read?.()) ?? null;
		} catch (error) {
			return Problem.of(error).status === 404 ? 'gone' : null;
		}
	}
}

/** A member that is another one by now. */
export interface Difference {
	name: string;
	then: string;
	now: string;
}

/** What changes with every change, and says nothing of it. */
const BOOKKEEPING = ['updated_at', 'version', 'waiting'];

/** What became different, member by member, in words. */
export function differences(then: unknown, now: unknown): Difference[] {
	const [old, current] = [members(then), members(now)];
	return Object.keys({ ...old, ...current })
		.filter((name) => !BOOKKEEPING.includes(name) && said(old[name]) !== said(current[name]))
		.map((name) => ({ name: words(name), then: said(old[name]), now: said(current[name]) }));
}

function members(value: unknown): Record<string, unknown> {
	const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
	return isObject ? (value as Record<string, unknown>) : { value };
}

function said(value: unknown): string {
	if (value === null || value === undefined) return 'none';
	return typeof value === 'string' ? value : JSON.stringify(value);
}
