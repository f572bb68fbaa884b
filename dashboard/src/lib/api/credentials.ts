import type { Problem } from './problem.ts';

/**
 * How this page shows the server who it is: by a cookie that no script can read, and by a token
 * that proves that a request comes from a page of ours. The token lives as long as the page.
 */
class Credentials {
	#csrf: string | null = null;
	/** Asked when the server refuses a request; says whether it is worth sending again. The session sets it. */
	renew: (endpoint: string, problem: Problem) => Promise<boolean> = () => Promise.resolve(false);

	headers(): Record<string, string> {
		return this.#csrf ? { 'x-csrf-token': this.#csrf } : {};
	}

	keep(csrf: string): void {
		this.#csrf = csrf;
	}

	forget(): void {
		this.#csrf = null;
	}

	/** Ask for the token of the cookie's session, as a page that was loaded anew does; tells whether there is one. */
	async restore(): Promise<boolean> {
		const response = await fetch('/api/v1/auth/csrf', { headers: { 'x-csrf-token': 'fetch' } });
		if (!response.ok) return false;
		const { csrf_token } = (await response.json()) as { csrf_token: string };
		this.#csrf = csrf_token;
		return true;
	}
}

export const credentials = new Credentials();
