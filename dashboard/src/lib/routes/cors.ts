import type { Cors } from '#lib/api/types.ts';
import { listed } from '#lib/format.ts';

/** What a form says of CORS: its lists are text, and it may say nothing at all. */
export interface CorsForm {
	on: boolean;
	origins: string;
	methods: string;
	headers: string;
	exposed_headers: string;
	credentials: boolean;
	max_age_s: number;
}

/** What a policy has where nothing is said; docs/api.md. */
const USUAL: Cors = {
	origins: [],
	methods: null,
	headers: ['authorization', 'content-type', 'idempotency-key'],
	exposed_headers: ['idempotency-ignored', 'idempotency-replayed', 'retry-after', 'x-execution-id'],
	credentials: false,
	max_age_s: 600
};

/** A route's policy in a form. */
export function formOf(policy: Cors | null): CorsForm {
	const { origins, methods, headers, exposed_headers, ...rest } = policy ?? USUAL;
	return {
		...rest,
		on: policy !== null,
		origins: origins.join('\n'),
		methods: (methods ?? []).join(', '),
		headers: headers.join(', '),
		exposed_headers: exposed_headers.join(', ')
	};
}

/** The policy that a form says. */
export function policyOf({ on, origins, methods, headers, exposed_headers, ...rest }: CorsForm): Cors | null {
	if (!on) return null;
	const chosen = listed(methods).map((method) => method.toUpperCase());
	return {
		...rest,
		origins: listed(origins),
		methods: chosen.length ? chosen : null,
		headers: listed(headers),
		exposed_headers: listed(exposed_headers)
	};
}
