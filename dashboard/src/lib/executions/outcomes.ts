import type { Execution } from '#lib/api/types.ts';

/** What can become of an execution; docs/api.md. */
export const OUTCOMES = [
	'answered',
	'threw',
	'invalid_source',
	'invalid_response',
	'fuel_used_up',
	'timed_out',
	'memory_exceeded',
	'stack_overflow',
	'output_too_large',
	'host_calls_exceeded',
	'trapped',
	'no_capacity',
	'no_memory',
	'script_deleted',
	'app_deleted',
	'trigger_deleted',
	'principal_gone',
	'platform_fault'
];

/** What can start one. */
export const INVOCATIONS = ['http', 'http_async', 'execute', 'kv', 'pubsub', 'dead_letter'];

/** What started an execution, in words. */
export function startedBy(invocation: string): string {
	const said: Record<string, string> = {
		http: 'Route',
		http_async: 'Async route',
		execute: 'Run by hand',
		kv: 'Key-value change',
		pubsub: 'Message',
		dead_letter: 'Dead letter'
	};
	return said[invocation] ?? invocation;
}

/** Which text of its script ran. */
export function versionOf({ invocation_type, script_version }: Pick<Execution, 'invocation_type' | 'script_version'>): string {
	return invocation_type === 'execute' && script_version === 0 ? 'draft' : `v${script_version}`;
}
