/** What a page can be told of. */
export interface Topic {
	kind: string;
	appId?: string | undefined;
}

/** Tells pages that something changed: all that they know of the stream of events. */
class Live {
	#listeners = new Set<{ topics: Topic[]; heard: () => void }>();

	/** Hear of changes to any of the topics, until the answer is called. */
	listen(topics: Topic[], heard: () => void): () => void {
		if (topics.length === 0) return () => undefined;
		const listener = { topics, heard };
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/** Tell those who listen: events of the server, and what this tab did itself. */
	tell(kind: string, appId?: string): void {
		for (const { topics, heard } of this.#listeners) {
			const concerns = (topic: Topic) =>
				topic.kind === kind && (!appId || !topic.appId || topic.appId === appId);
			if (topics.some(concerns)) heard();
		}
	}
}

export const live = new Live();
