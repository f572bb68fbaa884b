import { expect, test } from 'vitest';
import { agentName } from './agent.ts';

test.each([
	[
		'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36',
		'Chrome on Linux'
	],
	[
		'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0',
		'Edge on Windows'
	],
	['Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18.0 Mobile/15E148 Safari/604.1', 'Safari on iOS'],
	['picloud/0.1.0', 'picloud'],
	['node', 'node'],
	['', 'Unknown'],
	[null, 'Unknown']
])('%s is %s', (agent, name) => {
	expect(agentName(agent)).toBe(name);
});
