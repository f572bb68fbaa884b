import { Json, written } from '../json.ts';
import { presence } from '../presence.svelte.ts';
import { credentials } from './credentials.ts';
import { Problem } from './problem.ts';
import type { paths } from './schema.d.ts';

const ROOT = '/api/v1';

/** The same without the types of an endpoint. */
interface Sent {
	path?: Record<string, string | number>;
	query?: Record<string, string | number | boolean | null | undefined>;
	body?: unknown;
	signal?: AbortSignal;
	ifMatch?: string | null;
}

type Method = 'get' | 'post' | 'put' | 'patch' | 'delete';

/** Every endpoint, named as docs/api.md names it: `GET /apps/{app}/scripts`. */
export type Endpoint = {
	[P in keyof paths]: {
		[M in Method]: undefined extends paths[P][M] ? never : `${Uppercase<M>} ${P}`;
	}[Method];
}[keyof paths];

type Operation<E extends Endpoint> = E extends `${infer M} ${infer P extends keyof paths}`
	? Lowercase<M> extends Method
		? NonNullable<paths[P][Lowercase<M>]>
		: never
	: never;

type JsonOf<T> = T extends { content: { 'application/json': infer Body } } ? Body : never;
type Responses<E extends Endpoint> = Operation<E> extends { responses: infer R } ? R : never;

/** What an endpoint answers where all is well. */
export type Answer<E extends Endpoint> = {
	[S in keyof Responses<E>]: S extends 200 | 201
		? JsonOf<Responses<E>[S]>
		: S extends 204
			? undefined
			: never;
}[keyof Responses<E>];

type Parameters<E extends Endpoint> = Operation<E> extends { parameters: infer P } ? P : never;
type Body<E extends Endpoint> =
	Operation<E> extends { requestBody?: infer B } ? JsonOf<NonNullable<B>> : never;

/** What is sent to an endpoint: in its path, its query, its body. */
export type Options<E extends Endpoint> = {
	signal?: AbortSignal;
	/** The tag of what is changed, as it was read: without effect where it is another one by now. */
	ifMatch?: string | null;
} & (Parameters<E> extends { path: infer P } ? { path: P } : unknown) &
	(Parameters<E> extends { query?: infer Q } ? { query?: Loose<NonNullable<Q>> } : unknown) &
	([Body<E>] extends [never] ? unknown : { body: Body<E> });

/** Fields that a page leaves empty are not sent; the server checks the words of the others. */
type Loose<Q> = { [K in keyof Q]?: string | number | boolean | null | undefined };

type Needed<E extends Endpoint> =
	Record<string, never> extends Options<E> ? [options?: Options<E>] : [options: Options<E>];

/** What was answered, with the tag of the state in which it was. */
export interface Tagged<T> {
	answer: T;
	etag: string | null;
}

/** The same, as it stands in the answer too: for what is not ours, and is to stay as it was written. */
export interface Whole<T> extends Tagged<T> {
	json: Json;
}

/** Call an endpoint. Throws a `Problem`. */
export async function api<E extends Endpoint>(endpoint: E, ...given: Needed<E>): Promise<Answer<E>> {
	return (await tagged(endpoint, ...given)).answer;
}

/** The same, for what is read or written in order to be changed. */
export async function tagged<E extends Endpoint>(
	endpoint: E,
	...[given]: Needed<E>
): Promise<Whole<Answer<E>>> {
	const options: Sent = given ?? {};
	const [method = 'GET', template = ''] = endpoint.split(' ');
	const path = template.replace(/\{(\w+)\}/g, (_, name: string) => {
		const value = options.path?.[name];
		if (value === undefined) throw new Error(`${endpoint} needs ${name}`);
		// A browser takes it out of the path, and would ask for something else.
		if (value === '.' || value === '..') throw new Error(`no address has a part called ${value}`);
		return encodeURIComponent(value);
	});
	const search = new URLSearchParams();
	for (const [name, value] of Object.entries(options.query ?? {})) {
		if (value !== null && value !== undefined && value !== '') search.set(name, String(value));
	}
	const send = async (): Promise<Response> => {
		const headers = new Headers(credentials.headers());
		if (options.body !== undefined) headers.set('content-type', 'application/json');
		if (options.ifMatch) headers.set('if-match', options.ifMatch);
		try {
			return await fetch(`${ROOT}${path}${search.size ? `?${search}` : ''}`, {
				method,
				headers,
				body: options.body === undefined ? undefined : written(options.body),
				signal: options.signal
			} as RequestInit);
		} catch (error) {
			if (options.signal?.aborted) throw error;
			void presence.ask();
			throw Problem.unreachable();
		}
	};
	let response = await send();
	if (!response.ok) {
		const problem = await Problem.from(response);
		if (problem.isOutage) void presence.ask();
		// What was being done goes on where the sign-in is renewed.
		if (!(await credentials.renew(endpoint, problem))) throw problem;
		response = await send();
		if (!response.ok) throw await Problem.from(response);
	}
	const text = await response.text();
	try {
		const answer = (response.status === 204 ? undefined : JSON.parse(text)) as Answer<E>;
		return { answer, etag: response.headers.get('etag'), json: new Json(text) };
	} catch {
		throw Problem.notOurs(response.status);
	}
}
