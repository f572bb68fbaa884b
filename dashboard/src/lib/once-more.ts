/**
 * Do `work` whenever the answer is called, one at a time. Whoever calls while it is under way has it
 * done once more afterwards: what is under way may not know of what they call for, and to begin anew
 * at each call would never end where calls come faster than the work is done.
 */
export function onceMore(work: () => Promise<void>): () => Promise<void> {
	let running: Promise<void> | null = null;
	let again = false;
	const run = async () => {
		try {
			do {
				again = false;
				await work();
			} while (again);
		} finally {
			running = null;
		}
	};
	return () => {
		if (running) again = true;
		else running = run();
		return running;
	};
}
