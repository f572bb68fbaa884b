import type { HandleClientError } from '@sveltejs/kit/hooks';
import { presence } from '#lib/presence.svelte.ts';

/** What a page that cannot be shown says of why: a part of it that cannot be fetched is the server's absence. */
export const handleError: HandleClientError = (caught) => {
	if (caught.kind !== 'unknown') return;
	void presence.ask();
	return { message: caught.error instanceof Error ? caught.error.message : String(caught.error) };
};
