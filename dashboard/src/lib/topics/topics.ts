import type { OpenTopic, Trigger } from '#lib/api/types.ts';
import { fits } from '#lib/triggers/filter.ts';
import type { Tone } from '#lib/ui/Badge.svelte';

/** Who may subscribe to a topic. */
export type Mode = OpenTopic['auth_mode'];

/** The modes, from the least open, with what somebody who chooses one should know. */
export const MODES: { value: Mode; tone: Tone; who: string; means: string }[] = [
	{
		value: 'session',
		tone: 'good',
		who: 'Members of this app, signed in',
		means:
			'Whoever is signed in to this instance and may see this app hears every message, viewers included.'
	},
	{
		value: 'token',
		tone: 'accent',
		who: 'Whoever holds a subscriber token',
		means:
			'Whoever has a subscriber token hears every message, from anywhere. Your scripts decide who gets one, with pubsub::subscriber_token.'
	},
	{
		value: 'public',
		tone: 'warn',
		who: 'Anybody',
		means:
			'Anybody who reaches a host of this app hears every message, without signing in. What scripts publish there is public from then on.'
	}
];

/** A topic, or with `*` at its end all that begin so. */
export interface Topic {
	id: string;
	name: string;
	/** None where nobody opened it: it is internal. */
	opening: OpenTopic | null;
	/** The triggers that hear it. */
	triggers: string[];
}

/** The topics that were opened, then those that only triggers hear. */
export function topicsOf(openings: OpenTopic[], triggers: Trigger[]): Topic[] {
	const hearing = triggers.flatMap(({ name, kind, filter }) =>
		kind === 'pubsub' ? [{ name, topic: (filter as { topic: string }).topic }] : []
	);
	const open = openings.map((opening) => {
		const heard = ({ topic }: { topic: string }) =>
			fits(topic, opening.name) || fits(opening.name, topic);
		const names = hearing.filter(heard).map(({ name }) => name);
		return { id: opening.name, name: opening.name, opening, triggers: names };
	});
	const internal = new Map<string, string[]>();
	for (const { name, topic } of hearing) {
		if (openings.some((opening) => fits(opening.name, topic))) continue;
		internal.set(topic, [...(internal.get(topic) ?? []), name]);
	}
	const rest = [...internal].map(([name, names]) => {
		return { id: name, name, opening: null, triggers: names };
	});
	return [...open, ...rest];
}

/** How a topic is open, as the server decides it: its own name counts first, then the longest prefix. */
export function openingOf(openings: OpenTopic[], name: string): OpenTopic | undefined {
	const fitting = openings.filter((opening) => fits(opening.name, name));
	const exact = fitting.find((opening) => opening.name === name);
	return exact ?? fitting.sort((a, b) => b.name.length - a.name.length)[0];
}
