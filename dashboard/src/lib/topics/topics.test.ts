import { expect, test } from 'vitest';
import type { OpenTopic, Trigger } from '#lib/api/types.ts';
import { openingOf, topicsOf } from './topics.ts';

const opening = (name: string) => ({ name, auth_mode: 'public' }) as OpenTopic;
const hears = (name: string, topic: string) =>
	({ name, kind: 'pubsub', filter: { topic } }) as unknown as Trigger;

test('a topic that only triggers hear is internal, until something opens it', () => {
	const triggers = [hears('a', 'room:1'), hears('b', 'orders'), hears('c', 'orders')];
	const shown = (openings: OpenTopic[]) =>
		topicsOf(openings, triggers).map(({ name, opening, triggers }) => [name, opening !== null, triggers]);
	expect(shown([])).toEqual([
		['room:1', false, ['a']],
		['orders', false, ['b', 'c']]
	]);
	expect(shown([opening('room:*')])).toEqual([
		['room:*', true, ['a']],
		['orders', false, ['b', 'c']]
	]);
});

test('the most particular opening counts', () => {
	const all = ['room:*', 'room:vip:*', 'room:1'].map(opening);
	const of = (name: string) => openingOf(all, name)?.name;
	expect([of('room:1'), of('room:2'), of('room:vip:2'), of('poll')]).toEqual([
		'room:1',
		'room:*',
		'room:vip:*',
		undefined
	]);
});
