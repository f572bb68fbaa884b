import { api } from '#lib/api/client.ts';
import { live } from '#lib/live.svelte.ts';

export type Filter = Record<string, string>;
export type Act = 'replay' | 'resolve';

interface Settled {
	replayed?: number;
	resolved?: number;
	left: number;
	up_to: string | null;
}

/** What a bulk call takes: the filters of the list, or that all are meant. */
function body(filter: Filter, more: Record<string, unknown>): Record<string, unknown> {
	// Only unresolved ones are settled, whatever state the list shows.
	const meant: Record<string, unknown> = { ...filter };
	if (filter.handler_failed) meant.handler_failed = filter.handler_failed === 'true';
	delete meant.state;
	return { ...(Object.keys(meant).length ? meant : { all: true }), ...more };
}

/** How many unresolved dead letters a filter means. */
export async function dryRun(app: string, act: Act, filter: Filter): Promise<number> {
	const reason = act === 'resolve' ? { reason: 'ignored' } : {};
	const answer = await api<Settled>(`POST /apps/{app}/dead-letters/${act}`, {
		path: { app },
		body: body(filter, { ...reason, dry_run: true })
	});
	return (answer.replayed ?? answer.resolved ?? 0) + answer.left;
}

/** Settle them batch by batch, and tell after each how many are done and left. */
export async function settle(
	app: string,
	act: Act,
	filter: Filter,
	progress: (done: number, left: number) => void
): Promise<number> {
	const reason = act === 'resolve' ? { reason: 'ignored' } : {};
	let upTo: string | null = null;
	let done = 0;
	for (;;) {
		const bound: Record<string, unknown> = upTo ? { up_to: upTo } : {};
		const answer: Settled = await api<Settled>(`POST /apps/{app}/dead-letters/${act}`, {
			path: { app },
			body: body(filter, { ...reason, ...bound })
		});
		done += answer.replayed ?? answer.resolved ?? 0;
		upTo = answer.up_to;
		progress(done, answer.left);
		if (answer.left === 0) break;
	}
	live.tell('dead_letter', app);
	return done;
}
