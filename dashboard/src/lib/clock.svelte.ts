import { presence } from './presence.svelte.ts';

/**
 * The time, as a state: what shows "5 s ago" reads it. One timer for all of them. It stands while the
 * server is away: what is shown is of then, and gets no older by the looks of it.
 */
class Clock {
	now = $state(Date.now());

	constructor() {
		const tick = () => {
			if (presence.trouble?.says !== null) this.now = Date.now();
		};
		setInterval(tick, 10_000);
		presence.onBack(tick);
	}
}

export const clock = new Clock();
