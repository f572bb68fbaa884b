import { Problem } from './problem.ts';
import { credentials } from './credentials.ts';

const ROOT = '/api/v1';

export type Query = Record<string, string | number | boolean | null | undefined>;

export interface Options {
	/** The values of the path's parts in braces. */
	path?: Record<string, string | number>;
	query?: Query;
	body?: unknown;
	signal?: AbortSignal | undefined;
}

/** Call an endpoint, named as docs/api.md names it: `GET /apps/{app}/scripts`. Throws a `Problem`. */
export async function api<T = void>(endpoint: string, options: Options = {}): Promise<T> {
	const [method = 'GET', template = ''] = endpoint.split(' ');
	const path = template.replace(/\{(\w+)\}/g, (_, name: string) => {
		const value = options.path?.[name];
		if (value === undefined) throw new Error(`${endpoint} needs ${name}`);
		return encodeURIComponent(value);
	});
	const search = new URLSearchParams();
	for (const [name, value] of Object.entries(options.query ?? {})) {
		if (value !== null && value !== undefined && value !== '') search.set(name, String(value));
	}
	const headers = new Headers(credentials.headers());
	if (options.body !== undefined) headers.set('content-type', 'application/json');
	let response: Response;
	try {
		response = await fetch(`${ROOT}${path}${search.size ? `?${search}` : ''}`, {
			method,
			headers,
			body: options.body === undefined ? undefined : JSON.stringify(options.body),
			signal: options.signal
		} as RequestInit);
	} catch (error) {
		if (options.signal?.aborted) throw error;
		throw Problem.unreachable();
	}
	if (!response.ok) {
		const problem = await Problem.from(response);
		if (response.status === 401) credentials.onRefused();
		throw problem;
	}
	if (response.status === 204) return undefined as T;
	return (await response.json()) as T;
}
