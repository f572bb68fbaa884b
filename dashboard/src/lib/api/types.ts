// What the API answers. docs/api.md describes it.

export interface Page<T> {
	items: T[];
	next_cursor: string | null;
}

export type InstanceRole = 'owner' | 'admin' | 'member';
export type AppRole = 'app_admin' | 'editor' | 'viewer';

export interface Me {
	id: string;
	name: string;
	role: InstanceRole;
	apps: Record<string, AppRole>;
}

export interface App {
	id: string;
	slug: string;
	name: string;
	hosts: string[];
	is_default: boolean;
	created_at: string;
	updated_at: string;
}

export interface Limits {
	fuel: number | null;
	timeout_ms: number | null;
	memory_bytes: number | null;
	output_bytes: number | null;
	log_bytes: number | null;
}

export interface Script {
	id: string;
	app_id: string;
	name: string;
	kind: 'rhai' | 'component';
	version: number;
	limits: Partial<Limits>;
	created_at: string;
	updated_at: string;
	source?: string;
}

export interface ScriptVersion {
	version: number;
	created_at: string;
	source?: string;
}

export interface LogLine {
	at: string;
	level: 'debug' | 'info' | 'warn' | 'error';
	message: string;
	fields: Record<string, unknown> | null;
}

export interface ExecutionError {
	message: string;
	line: number | null;
	column: number | null;
	calls: string[];
}

export interface Run {
	execution_id: string;
	outcome: string;
	response: {
		status: number;
		headers: [string, string][];
		body?: unknown;
		body_base64?: string;
	} | null;
	error: ExecutionError | null;
	fuel: number;
	duration_us: number;
	logs: LogLine[];
	logs_truncated: boolean;
}

export interface Route {
	id: string;
	app_id: string;
	script_id: string;
	method: string;
	host: string | null;
	path: string;
	dispatch_mode: 'sync' | 'async';
	idempotency: { ttl_s: number; keep_answer: boolean } | null;
	created_at: string;
	updated_at: string;
}

export interface Retry {
	attempts_max: number;
	backoff: 'exponential' | 'linear' | 'constant';
	base_ms: number;
	jitter_pct: number;
}

export interface Trigger {
	id: string;
	app_id: string;
	script_id: string;
	name: string;
	kind: string;
	filter: Record<string, unknown>;
	enabled: boolean;
	paused: boolean;
	retry: Retry;
	ordered_by: 'key' | null;
	registered_by_principal: string;
	created_at: string;
	updated_at: string;
	waiting: number;
}

export interface Execution {
	id: string;
	app_id: string;
	script_id: string;
	script_version: number;
	delivery_id: string | null;
	attempt: number;
	parent_id: string | null;
	trigger_id: string | null;
	invocation_type: string;
	request_id: string;
	outcome: string;
	status: number | null;
	started_at: string;
	duration_us: number;
	fuel: number;
	error: ExecutionError | null;
	logs?: LogLine[];
	logs_truncated?: boolean;
}

export interface TreeNode extends Execution {
	children: TreeNode[];
}

export interface Attempt {
	attempt: number;
	at: string;
	execution_id: string | null;
	script_version: number;
	outcome: string;
	error: string | null;
	fuel: number;
	duration_us: number;
}

export interface DeadLetter {
	id: string;
	app_id: string;
	script_id: string;
	script_version: number;
	trigger_id: string | null;
	source: string;
	state: 'unresolved' | 'replayed' | 'resolved';
	attempts: number;
	last_error: string;
	first_attempt_at: string;
	last_attempt_at: string;
	handler_failed: boolean;
	reason: string | null;
	replay_of: string | null;
	replayed_as: string | null;
	settled_by: string | null;
	settled_at: string | null;
	delivery_id: string;
	request_id: string;
	retry: Retry;
	payload?: unknown;
	history?: Attempt[];
}
