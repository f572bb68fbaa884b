import { session } from '#lib/session.svelte.ts';

/** A message of a topic; docs/protocol.md. */
export interface Message {
	id: string;
	seq?: number;
	published_at: string;
	message: unknown;
}

/** How many are shown. */
const MAX = 200;

/** The newest messages of a topic, the newest first: those that its journal keeps, and those to come. */
export class Messages {
	all = $state.raw<Message[]>([]);
	listening = $state(false);

	/** `address` is that of the stream; none where there is nothing to hear. */
	constructor(address: () => string | null) {
		$effect(() => {
			const from = address();
			void session.count;
			this.all = [];
			this.listening = false;
			if (from === null) return;
			// The browser resumes it after the last id that it has.
			const source = new EventSource(`${from}?last_event_id=earliest`);
			source.addEventListener('ready', () => (this.listening = true));
			source.addEventListener('error', () => (this.listening = false));
			for (const end of ['reset', 'expired']) {
				source.addEventListener(end, () => {
					source.close();
					this.listening = false;
				});
			}
			source.addEventListener('message', ({ data }) => {
				this.all = [JSON.parse(data as string) as Message, ...this.all].slice(0, MAX);
			});
			return () => source.close();
		});
	}
}
