import type { HandleClientError } from '@sveltejs/kit/hooks';
import { server } from '#lib/server.svelte.ts';

/** What a page that cannot be shown says of why: a part of it that cannot be fetched is the server's absence. */
export const handleError: HandleClientError = (caught) => {
	if (caught.kind !== 'unknown') return;
	void server.ask();
	return { message: caught.error instanceof Error ? caught.error.message : String(caught.error) };
};
