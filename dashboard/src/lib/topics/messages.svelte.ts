import { Json } from '#lib/json.ts';
import { session } from '#lib/session.svelte.ts';

/** A message of a topic; docs/protocol.md. */
export interface Message {
	id: string;
	seq?: number;
	published_at: string;
	/** As it was written. */
	message: Json | null;
}

/** How many are shown. */
const MAX = 200;
/** How long to wait before a stream that was refused is asked for anew, in milliseconds. */
const AGAIN_MS = 5_000;

/** The newest messages of a topic, the newest first: those that its journal keeps, and those to come. */
export class Messages {
	all = $state.raw<Message[]>([]);
	listening = $state(false);
	/** How often it was asked for anew. */
	#again = $state(0);

	/** `address` is that of the stream; none where there is nothing to hear. */
	constructor(address: () => string | null) {
		$effect(() => {
			const from = address();
			void [session.count, this.#again];
			this.all = [];
			this.listening = false;
			if (from === null) return;
			// The browser resumes it after the last id that it has.
			const source = new EventSource(`${from}?last_event_id=earliest`);
			source.addEventListener('ready', () => (this.listening = true));
			let again: ReturnType<typeof setTimeout> | undefined;
			source.addEventListener('error', () => {
				this.listening = false;
				// Refused, because the server starts say: the browser does not try again by itself.
				if (source.readyState === EventSource.CLOSED) again = setTimeout(() => this.#again++, AGAIN_MS);
			});
			for (const end of ['reset', 'expired']) {
				source.addEventListener(end, () => {
					source.close();
					this.listening = false;
				});
			}
			source.addEventListener('message', ({ data }) => {
				const json = new Json(data as string);
				const message = { ...(JSON.parse(json.text) as Message), message: json.at('message') };
				this.all = [message, ...this.all].slice(0, MAX);
			});
			return () => {
				clearTimeout(again);
				source.close();
			};
		});
	}
}
