import { Problem } from './api/problem.ts';

/** What a form is doing, and what was wrong with it: the one way in which ours are sent. */
export class Form {
	busy = $state(false);
	problem = $state.raw<Problem | null>(null);

	/** What is wrong with a field, if that is what was wrong. */
	errorOf(field: string): string | undefined {
		const named = this.problem?.body.field?.split('[')[0];
		return named === field ? this.problem?.message : undefined;
	}

	/** Do it, unless it is being done; tells whether it went well. */
	async send(work: () => Promise<unknown>): Promise<boolean> {
		if (this.busy) return false;
		this.busy = true;
		this.problem = null;
		try {
			await work();
			return true;
		} catch (error) {
			this.problem = Problem.of(error);
			return false;
		} finally {
			this.busy = false;
		}
	}
}
