import type { App } from '#lib/api/types.ts';

/** What a wildcard's first label is shown as, for people to replace. */
const ANY = 'any';

/** A host that leads to an app; none where there is none. It may be that of this page. */
export function hostOf({ hosts, is_default }: App, here: string): string | null {
	const own = (host: string) => host === here || (host.startsWith('*.') && here.endsWith(host.slice(1)));
	// The default app has what nobody else claims, this page's host perhaps.
	if (hosts.some(own)) return here;
	const [first] = hosts;
	if (first) return first.replace('*', ANY);
	return is_default ? here : null;
}

/** A command that calls an app by this server, whether or not its host's name leads here; none where nothing would. */
export function curl(app: App, method: string, path: string, { hostname, origin } = location): string | null {
	const host = hostOf(app, hostname);
	if (host === null) return null;
	const words = ['curl -i'];
	if (method !== 'GET') words.push(`-X ${method}`);
	if (host !== hostname) words.push(`-H 'host: ${host}'`);
	return [...words, `'${origin}${path}'`].join(' ');
}
