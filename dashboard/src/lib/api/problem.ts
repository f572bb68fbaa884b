/** Where a source is wrong. */
export interface Diagnostic {
	message: string;
	line: number | null;
	column: number | null;
}

interface Body {
	type?: string;
	title?: string;
	detail?: string;
	field?: string;
	execution_id?: string;
	diagnostics?: Diagnostic[];
	[extension: string]: unknown;
}

const PREFIX = 'urn:picloud:problem:';

/** What the API answers when it refuses or fails (RFC 9457), as an error. */
export class Problem extends Error {
	override readonly name = 'Problem';

	constructor(
		/** The status of the answer; 0 when there was none. */
		readonly status: number,
		readonly body: Body,
		/** After how many seconds to try again, if the server said so. */
		readonly retryAfter: number | null = null
	) {
		super(body.detail ?? body.title ?? `the server answered ${status}`);
	}

	/** The stable name, as `version_conflict`. */
	get kind(): string {
		return this.body.type?.startsWith(PREFIX) ? this.body.type.slice(PREFIX.length) : 'unknown';
	}

	get title(): string {
		return this.body.title ?? (this.status ? `Error ${this.status}` : 'No answer');
	}

	/** Any error as a problem, so that there is one way to show them. */
	static of(error: unknown): Problem {
		if (error instanceof Problem) return error;
		const detail = error instanceof Error ? error.message : String(error);
		return new Problem(0, { title: 'Something went wrong in this page', detail });
	}

	static unreachable(): Problem {
		const detail = 'The server does not answer. Check that it runs and that you are online.';
		return new Problem(0, { title: 'No connection', detail });
	}

	/** Something between here and the server answered in its place: a proxy's sign-in page, say. */
	static notOurs(status: number): Problem {
		const detail = 'It came from something between here and the server, as a proxy that wants a sign-in.';
		return new Problem(status, { title: 'This is not the server’s answer', detail });
	}

	/** Whether the server, or what it needs, seems to be away. */
	get isOutage(): boolean {
		return this.kind === 'unavailable' || (this.status >= 502 && this.status <= 504 && this.kind === 'unknown');
	}

	static async from(response: Response): Promise<Problem> {
		const after = Number(response.headers.get('retry-after'));
		const isProblem = response.headers.get('content-type')?.includes('json');
		const body: Body = isProblem ? await response.json().catch(() => ({})) : {};
		return new Problem(response.status, body, Number.isFinite(after) && after > 0 ? after : null);
	}
}
