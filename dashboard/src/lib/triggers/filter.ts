import type { Trigger } from '#lib/api/types.ts';

interface KvFilter {
	collection: string;
	ops: string[];
	key?: string | null;
}

/** What a trigger hears, in words. */
export function heard({ kind, filter }: Pick<Trigger, 'kind' | 'filter'>): string {
	if (kind === 'kv') {
		const { collection, ops, key } = filter as unknown as KvFilter;
		const which = ops.length === 3 ? 'any change' : ops.join(', ');
		return `${which} in ${collection}${key && key !== '*' ? `, keys ${key}` : ''}`;
	}
	if (kind === 'pubsub') return `messages to ${(filter as { topic: string }).topic}`;
	if (kind === 'dead_letter') {
		const set = Object.entries(filter).filter(([, value]) => value !== null);
		return set.length ? `dead letters of one ${set.map(([name]) => name.replace('_id', '')).join(', ')}` : 'every dead letter';
	}
	return kind;
}

/** Whether a name fits a pattern: exact, `prefix*`, or `*`. */
export function fits(pattern: string, name: string): boolean {
	return pattern.endsWith('*') ? name.startsWith(pattern.slice(0, -1)) : pattern === name;
}

/** The triggers that a change of a key would fire. */
export function fired(triggers: Trigger[], op: string, collection: string, key: string): Trigger[] {
	return triggers.filter(({ kind, enabled, filter }) => {
		if (kind !== 'kv' || !enabled) return false;
		const wanted = filter as unknown as KvFilter;
		return (
			wanted.ops.includes(op) &&
			fits(wanted.collection, collection) &&
			(!wanted.key || fits(wanted.key, key))
		);
	});
}
