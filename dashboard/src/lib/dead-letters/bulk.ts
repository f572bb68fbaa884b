import { api } from '#lib/api/client.ts';
import { live } from '#lib/live.svelte.ts';

export type Filter = Record<string, string>;
export type Act = 'replay' | 'resolve';

interface Batch {
	dry_run?: boolean;
	up_to?: string;
}

/** Settle one batch, or count what would be settled. */
async function batch(app: string, act: Act, filter: Filter, more: Batch) {
	// Only unresolved ones are settled, whatever state the list shows.
	const rest: Filter = { ...filter };
	delete rest.state;
	delete rest.handler_failed;
	const failed = filter.handler_failed ? { handler_failed: filter.handler_failed === 'true' } : {};
	const meant = { ...rest, ...failed };
	const body = { ...(Object.keys(meant).length ? meant : { all: true }), ...more };
	const path = { app };
	if (act === 'replay') {
		const { replayed, ...answer } = await api('POST /apps/{app}/dead-letters/replay', { path, body });
		return { ...answer, settled: replayed };
	}
	const { resolved, ...answer } = await api('POST /apps/{app}/dead-letters/resolve', {
		path,
		body: { ...body, reason: 'ignored' }
	});
	return { ...answer, settled: resolved };
}

/** How many unresolved dead letters a filter means. */
export async function dryRun(app: string, act: Act, filter: Filter): Promise<number> {
	const { settled, left } = await batch(app, act, filter, { dry_run: true });
	return settled + left;
}

/** Settle them batch by batch, and tell after each how many are done and left. */
export async function settle(
	app: string,
	act: Act,
	filter: Filter,
	progress: (done: number, left: number) => void
): Promise<number> {
	let upTo: string | null | undefined;
	let done = 0;
	for (;;) {
		const answer = await batch(app, act, filter, upTo ? { up_to: upTo } : {});
		done += answer.settled;
		upTo = answer.up_to;
		progress(done, answer.left);
		if (answer.left === 0) break;
	}
	live.tell('dead_letter', app);
	return done;
}
