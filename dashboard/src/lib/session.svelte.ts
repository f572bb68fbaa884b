import { api, type Options } from './api/client.ts';
import { credentials } from './api/credentials.ts';
import type { App, AppRole, Me } from './api/types.ts';
import { live } from './live.svelte.ts';

const RANK: Record<AppRole, number> = { viewer: 1, editor: 2, app_admin: 3 };

/** Who is signed in, and what they may do. The API decides; this only hides what it would refuse. */
class Session {
	me = $state<Me | null>(null);
	/** Somebody was signed in and is not any more: the page stays, and asks for the password again. */
	expired = $state(false);

	constructor() {
		const expire = () => {
			if (this.me) this.expired = true;
		};
		credentials.onRefused = expire;
		live.onExpired = expire;
	}

	async load(): Promise<void> {
		if (!(await credentials.restore())) return;
		this.me = await api('GET /auth/me');
		live.connect();
	}

	signIn(name: string, password: string): Promise<void> {
		return this.begin('POST /auth/login', { name, password });
	}

	/** Begin a session by an endpoint that signs somebody in. */
	async begin(endpoint: 'POST /auth/login' | 'POST /auth/join' | 'POST /setup', fields: Record<string, string>): Promise<void> {
		const body = { ...fields, cookie: true };
		const { csrf_token } = (await api(endpoint, { body } as Options<typeof endpoint>)) as { csrf_token: string };
		credentials.keep(csrf_token);
		this.me = await api('GET /auth/me');
		this.expired = false;
		live.connect();
	}

	async signOut(): Promise<void> {
		live.close();
		await api('POST /auth/logout').catch(() => undefined);
		credentials.forget();
		this.me = null;
		this.expired = false;
	}

	/** Whether they administer the instance. */
	get isAdmin(): boolean {
		return this.me?.role === 'owner' || this.me?.role === 'admin';
	}

	/** Whether an app keeps from them what its requests and events carry. */
	isKeptFrom({ id, hide_payloads_from_viewers }: App): boolean {
		return hide_payloads_from_viewers && !this.has('editor', id);
	}

	/** Whether they have this role in an app, or a higher one. */
	has(role: AppRole, appId: string): boolean {
		if (this.isAdmin) return true;
		const own = this.me?.apps[appId];
		return own !== undefined && RANK[own] >= RANK[role];
	}
}

export const session = new Session();
