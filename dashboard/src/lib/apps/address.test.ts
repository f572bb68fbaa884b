import { expect, test } from 'vitest';
import type { App } from '#lib/api/types.ts';
import { curl } from './address.ts';

const here = { hostname: 'picloud.test', origin: 'https://picloud.test:8443' } as Location;
const app = (hosts: string[], is_default = false) => ({ hosts, is_default }) as App;

test.each([
	['the default app, by what nobody claims', app([], true), "curl -i 'https://picloud.test:8443/hello'"],
	['one of a host, by that', app(['shop.test']), "curl -i -H 'host: shop.test' 'https://picloud.test:8443/hello'"],
	['one of this host', app(['shop.test', 'picloud.test']), "curl -i 'https://picloud.test:8443/hello'"],
	['one of many hosts', app(['*.shop.test']), "curl -i -H 'host: any.shop.test' 'https://picloud.test:8443/hello'"],
	['one of many hosts, this one too', app(['*.test']), "curl -i 'https://picloud.test:8443/hello'"],
	['one without a host', app([]), null]
])('a command calls the app that it is shown for: %s', (_, app, command) => {
	expect(curl(app, 'GET', '/hello', here)).toBe(command);
});

test('a command says the method where it is not the usual one', () => {
	expect(curl(app([], true), 'POST', '/a?b=1', here)).toBe("curl -i -X POST 'https://picloud.test:8443/a?b=1'");
});
