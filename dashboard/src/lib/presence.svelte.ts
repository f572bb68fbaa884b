/** How long to wait for an answer to the question whether somebody is there, in milliseconds. */
const PATIENCE_MS = 5_000;
/** How often is asked while nobody answers, and while all seems well. */
const AWAY_MS = 2_000;
const WELL_MS = 15_000;

/** What is wrong with a server. */
export interface Trouble {
	/** Since when, as far as this page knows, in milliseconds since 1970. */
	since: number;
	/** What it says of itself; none where it does not answer. */
	says: string[] | null;
}

/**
 * Whether the server is there. Pages look as they did while it is not, so it is asked: when something
 * failed, when the stream of events broke, and now and then, since one that hangs breaks nothing.
 */
class Presence {
	trouble = $state.raw<Trouble | null>(null);
	/** When it was heard of last. */
	#heard = Date.now();
	#back = new Set<() => void>();
	#timer: ReturnType<typeof setTimeout> | undefined;
	#asking = false;

	/** Ask now and then, from now on. */
	watch(): void {
		addEventListener('online', () => void this.ask());
		addEventListener('offline', () => void this.ask());
		document.addEventListener('visibilitychange', () => void this.ask());
		this.#plan();
	}

	/** Be told when it is back, until the answer is called. */
	onBack(heard: () => void): () => void {
		this.#back.add(heard);
		return () => this.#back.delete(heard);
	}

	/** See whether it is there: something failed. */
	async ask(): Promise<void> {
		if (this.#asking) return;
		this.#asking = true;
		const says = await ready();
		this.#asking = false;
		if (says === 'ready') this.#found();
		else this.trouble = { since: this.trouble?.since ?? this.#heard, says };
		this.#plan();
	}

	#found(): void {
		const wasAway = this.trouble !== null;
		this.#heard = Date.now();
		this.trouble = null;
		if (wasAway) for (const heard of [...this.#back]) heard();
	}

	#plan(): void {
		clearTimeout(this.#timer);
		const ask = () => (document.visibilityState === 'hidden' ? this.#plan() : void this.ask());
		this.#timer = setTimeout(ask, this.trouble ? AWAY_MS : WELL_MS);
	}
}

/** What the server says of itself; null where it says nothing. */
async function ready(): Promise<'ready' | string[] | null> {
	try {
		const answer = await fetch('/readyz', { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS) });
		const { status, problems } = (await answer.json()) as { status?: string; problems?: string[] };
		if (answer.ok && status === 'ready') return 'ready';
		// A proxy says something else, and so does a server that stops.
		return status === 'not ready' ? (problems ?? []) : null;
	} catch {
		return null;
	}
}

export const presence = new Presence();
