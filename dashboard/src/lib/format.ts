const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
	['year', 31_536_000],
	['month', 2_592_000],
	['day', 86_400],
	['hour', 3_600],
	['minute', 60]
];

const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'narrow' });
const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'long' });

/** How long before `now` an instant was, as "5m ago"; "just now" below ten seconds. */
export function ago(instant: string, now: number): string {
	const seconds = (Date.parse(instant) - now) / 1000;
	if (Math.abs(seconds) < 10) return 'just now';
	for (const [unit, size] of UNITS) {
		if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), unit);
	}
	return relative.format(Math.trunc(seconds), 'second');
}

/** An instant in the viewer's zone and language. */
export function exactly(instant: string): string {
	return absolute.format(new Date(instant));
}

/** 850 µs, 12.4 ms, 3.1 s, 2.5 min. */
export function duration(microseconds: number): string {
	const steps: [number, string][] = [
		[60_000_000, 'min'],
		[1_000_000, 's'],
		[1_000, 'ms']
	];
	for (const [size, unit] of steps) {
		if (microseconds >= size) return `${digits(microseconds / size)} ${unit}`;
	}
	return `${Math.round(microseconds)} µs`;
}

/** 90 s, 5 min, 1 h, 30 d: the largest unit that says it whole. */
export function seconds(number: number): string {
	const steps: [number, string][] = [
		[86_400, 'd'],
		[3_600, 'h'],
		[60, 'min']
	];
	for (const [size, unit] of steps) if (number % size === 0) return `${number / size} ${unit}`;
	return `${number} s`;
}

/** 950, 12.3k, 4.5M. */
export function count(number: number): string {
	const steps: [number, string][] = [
		[1e9, 'B'],
		[1e6, 'M'],
		[1e3, 'k']
	];
	for (const [size, unit] of steps) if (number >= size) return `${digits(number / size)}${unit}`;
	return String(number);
}

/** 512 B, 1.5 KiB, 16 MiB. */
export function bytes(number: number): string {
	const steps: [number, string][] = [
		[1024 ** 3, 'GiB'],
		[1024 ** 2, 'MiB'],
		[1024, 'KiB']
	];
	for (const [size, unit] of steps) if (number >= size) return `${digits(number / size)} ${unit}`;
	return `${number} B`;
}

/** Three figures, and no zeros after the point. */
function digits(number: number): string {
	const places = number >= 100 ? 0 : number >= 10 ? 1 : 2;
	return String(Number(number.toFixed(places)));
}

/** A word of the API for people: `fuel_used_up` → `Fuel used up`. */
export function words(word: string): string {
	const text = word.replaceAll('_', ' ');
	return text.charAt(0).toUpperCase() + text.slice(1);
}

/** The part of an id that tells it from its neighbours: ids begin with the time. */
export function shortId(id: string): string {
	return id.slice(-8);
}

/** The words of a list as people type it: with commas, with spaces, or each on its line. */
export function listed(text: string): string[] {
	return text.split(/[\s,]+/).filter(Boolean);
}

/** How many, with its noun. */
export function plural(number: number, one: string, many = `${one}s`): string {
	return `${number.toLocaleString('en')} ${number === 1 ? one : many}`;
}
