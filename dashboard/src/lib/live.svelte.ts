import { presence } from './presence.svelte.ts';

/** What a page can be told of. */
export interface Topic {
	kind: string;
	appId?: string | undefined;
}

/** An event of `GET /events`; docs/protocol.md. */
export interface Event {
	type: string;
	app_id: string | null;
	data: { what?: string; [member: string]: unknown };
}

/** How long to wait for the first attempt to connect again, and at most, in milliseconds. */
const AGAIN_MS = 1_000;
const AGAIN_MS_MAX = 30_000;

/** What an event changes. */
export function kindOf({ type, data }: Pick<Event, 'type' | 'data'>): string {
	if (type.startsWith('dead_letters.')) return 'dead_letter';
	if (type === 'executions') return 'execution';
	return data.what ?? type;
}

/** Tells pages that something changed: all that they know of the stream of events. */
class Live {
	/** Whether changes are heard of as they happen. */
	connected = $state(false);
	/** What happens when the sign-in ended; the session sets it. */
	onExpired: () => void = () => undefined;
	#listeners = new Set<{ topics: Topic[]; heard: () => void }>();
	#source: EventSource | null = null;
	#again: ReturnType<typeof setTimeout> | undefined;
	#wait = AGAIN_MS;
	/** How often it was refused in a row. */
	#refusals = 0;

	/** Hear of changes to any of the topics, until the answer is called. */
	listen(topics: Topic[], heard: () => void): () => void {
		if (topics.length === 0) return () => undefined;
		const listener = { topics, heard };
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/** Tell those who listen: events of the server, and what this tab did itself. */
	tell(kind: string, appId?: string | null): void {
		for (const { topics, heard } of this.#listeners) {
			const concerns = (topic: Topic) =>
				topic.kind === kind && (!appId || !topic.appId || topic.appId === appId);
			if (topics.some(concerns)) heard();
		}
	}

	/**
	 * Open the stream. The browser resumes it by the last id when it breaks. Nothing is known of
	 * what happened before it is open for the first time, so what pages have by then is fetched
	 * anew: no sooner, or what happens in between would be missed.
	 */
	connect(): void {
		this.close();
		const source = new EventSource('/api/v1/events');
		this.#source = source;
		let isFirst = true;
		source.addEventListener('ready', () => {
			this.connected = true;
			this.#wait = AGAIN_MS;
			this.#refusals = 0;
			if (isFirst) this.tellAll();
			// What ran is not in the journal, so what happened in between is fetched.
			else this.tell('execution');
			isFirst = false;
		});
		source.addEventListener('gap', () => this.tellAll());
		source.addEventListener('message', ({ data }) => {
			const event = JSON.parse(data as string) as Event;
			this.tell(kindOf(event), event.app_id);
		});
		source.addEventListener('expired', () => {
			this.close();
			this.onExpired();
		});
		source.addEventListener('error', () => {
			this.connected = false;
			void presence.ask();
			if (source.readyState !== EventSource.CLOSED || this.#source !== source) return;
			// Refused: the browser does not try again by itself. Where that lasts, because there are
			// too many streams say, pages are fetched anew as often as it is tried.
			if (++this.#refusals > 1) this.tellAll();
			this.#again = setTimeout(() => this.connect(), this.#wait);
			this.#wait = Math.min(this.#wait * 2, AGAIN_MS_MAX);
		});
	}

	close(): void {
		clearTimeout(this.#again);
		this.#source?.close();
		this.#source = null;
		this.connected = false;
	}

	/** What happened is not known: all is fetched anew. */
	tellAll(): void {
		for (const { heard } of this.#listeners) heard();
	}
}

export const live = new Live();
