import { redirect } from '@sveltejs/kit';
import { api } from '#lib/api/client.ts';
import { path } from '#lib/paths.ts';

/** Where nobody owns the instance yet, nobody can sign in. */
export async function load() {
	const [setup, provider] = await Promise.all([
		api('GET /setup').catch(() => null),
		api('GET /auth/oidc').catch(() => null)
	]);
	if (setup?.has_owner === false) redirect(307, path`/setup`);
	return { provider: provider?.name ?? null };
}
