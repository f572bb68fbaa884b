import type { Route } from '#lib/api/types.ts';

type Setting = NonNullable<Route['idempotency']>;

/** What a form says of idempotency keys: it may say nothing at all. */
export type KeysForm = Setting & { on: boolean };

/** What a route has where nothing is said; docs/api.md. */
const USUAL: Setting = { ttl_s: 86_400, keep_answer: true };

/** A route's setting in a form. */
export function formOf(setting: Setting | null): KeysForm {
	return { ...USUAL, ...setting, on: setting !== null };
}

/** The setting that a form says. */
export function settingOf({ on, ...setting }: KeysForm): Setting | null {
	return on ? setting : null;
}
