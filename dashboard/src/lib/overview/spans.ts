/** The times that can be chosen: how long, and into how many steps. */
export const SPANS = [
	{ name: '15m', title: '15 minutes', seconds: 900, steps: 60 },
	{ name: '1h', title: 'Hour', seconds: 3_600, steps: 60 },
	{ name: '6h', title: '6 hours', seconds: 21_600, steps: 72 },
	{ name: '1d', title: 'Day', seconds: 86_400, steps: 96 },
	{ name: '7d', title: 'Week', seconds: 604_800, steps: 84 }
] as const;
