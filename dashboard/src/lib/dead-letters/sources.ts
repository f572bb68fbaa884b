/** What a delivery that failed came from, in words. */
export const SOURCES = [
	{ value: 'http', label: 'Async route' },
	{ value: 'kv', label: 'Key-value change' },
	{ value: 'pubsub', label: 'Message' }
];
