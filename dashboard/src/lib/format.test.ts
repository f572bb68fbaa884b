import { expect, test } from 'vitest';
import { ago, bytes, count, duration, listed, plural, seconds, shortId, words } from './format.ts';

const now = Date.parse('2026-11-21T12:00:00Z');

test.each([
	['2026-11-21T11:59:55Z', 'just now'],
	['2026-11-21T11:59:18Z', '42s ago'],
	['2026-11-21T11:55:00Z', '5m ago'],
	['2026-11-21T09:00:00Z', '3h ago'],
	['2026-11-20T11:00:00Z', 'yesterday'],
	['2026-11-11T12:00:00Z', '10d ago'],
	['2026-11-21T12:05:00Z', 'in 5m']
])('an instant is told by its distance: %s', (instant, said) => {
	expect(ago(instant, now)).toBe(said);
});

test.each([
	[0, '0 µs'],
	[850, '850 µs'],
	[1_000, '1 ms'],
	[12_440, '12.4 ms'],
	[999_000, '999 ms'],
	[3_100_000, '3.1 s'],
	[150_000_000, '2.5 min']
])('a duration of %i µs has three figures and its unit', (microseconds, said) => {
	expect(duration(microseconds)).toBe(said);
});

test.each([
	[0, '0'],
	[950, '950'],
	[12_345, '12.3k'],
	[4_500_000, '4.5M']
])('a count of %i is short', (number, said) => {
	expect(count(number)).toBe(said);
});

test('sizes are in powers of 1024', () => {
	expect([512, 1536, 16 * 1024 ** 2].map(bytes)).toEqual(['512 B', '1.5 KiB', '16 MiB']);
});

test('words of the API read as words', () => {
	expect(words('fuel_used_up')).toBe('Fuel used up');
});

test('one is not many', () => {
	expect([plural(1, 'key'), plural(2, 'key'), plural(2, 'entry', 'entries')]).toEqual([
		'1 key',
		'2 keys',
		'2 entries'
	]);
});

test('an id is told by its end, because its beginning is the time', () => {
	expect(shortId('019a9b1c-0000-7000-8000-00000abcdef0')).toBe('0abcdef0');
});

test('a whole number of seconds is told in its largest unit', () => {
	expect([90, 300, 3_600, 5_400, 86_400 * 30].map(seconds)).toEqual(['90 s', '5 min', '1 h', '90 min', '30 d']);
});

test('a list is read as people type it', () => {
	expect(listed(' a, b\nc  d,')).toEqual(['a', 'b', 'c', 'd']);
	expect(listed(' ')).toEqual([]);
});
