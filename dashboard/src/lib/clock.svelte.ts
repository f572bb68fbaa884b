/** The time, as a state: what shows "5 s ago" reads it. One timer for all of them. */
class Clock {
	now = $state(Date.now());

	constructor() {
		setInterval(() => (this.now = Date.now()), 10_000);
	}
}

export const clock = new Clock();
