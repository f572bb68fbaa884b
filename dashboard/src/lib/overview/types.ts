/** How an app did over a time; docs/api.md. */
export interface Overview {
	since: string;
	until: string;
	executions: number;
	failed: number;
	p50_us: number | null;
	p95_us: number | null;
	p99_us: number | null;
	truncated: boolean;
	steps: Step[];
	waiting: number;
	oldest_due_at: string | null;
	unresolved_dead_letters: number | null;
}

export interface Step {
	at: string;
	executions: number;
	failed: number;
	p50_us: number | null;
	p95_us: number | null;
	p99_us: number | null;
	by_outcome: Record<string, number>;
}

/** The times that can be chosen: how long, and into how many steps. */
export const SPANS = [
	{ name: '15m', title: '15 minutes', seconds: 900, steps: 60 },
	{ name: '1h', title: 'Hour', seconds: 3_600, steps: 60 },
	{ name: '6h', title: '6 hours', seconds: 21_600, steps: 72 },
	{ name: '1d', title: 'Day', seconds: 86_400, steps: 96 },
	{ name: '7d', title: 'Week', seconds: 604_800, steps: 84 }
] as const;
