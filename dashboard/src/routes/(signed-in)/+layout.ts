import { redirect } from '@sveltejs/kit';
import { Problem } from '#lib/api/problem.ts';
import { path, withQuery } from '#lib/paths.ts';
import { session } from '#lib/session.svelte.ts';

export async function load({ url }) {
	try {
		if (!session.me) await session.load();
	} catch (error) {
		if (Problem.of(error).status !== 401) throw error;
	}
	if (!session.me) {
		redirect(307, withQuery(path`/login`, { next: url.pathname + url.search }));
	}
}
