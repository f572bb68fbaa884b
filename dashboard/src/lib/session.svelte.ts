import { api, type Options } from './api/client.ts';
import { credentials } from './api/credentials.ts';
import { Problem } from './api/problem.ts';
import type { App, AppRole, Me } from './api/types.ts';
import { live } from './live.svelte.ts';
import { presence } from './presence.svelte.ts';

const RANK: Record<AppRole, number> = { viewer: 1, editor: 2, app_admin: 3 };
/** They are refused by what they are about, and not for want of a sign-in. */
const NOT_RENEWED = ['POST /auth/login', 'POST /auth/logout', 'GET /auth/me'];

/** Who is signed in, and what they may do. The API decides; this only hides what it would refuse. */
class Session {
	me = $state<Me | null>(null);
	/** Somebody was signed in and is not any more: the page stays, and asks for the password again. */
	expired = $state(false);
	/** How often somebody signed in: what a sign-in's end has ended begins anew with it. */
	count = $state(0);
	/** The requests that wait for the sign-in. */
	#waiting: { goOn: () => void; giveUp: (why: Problem) => void }[] = [];
	/** Between the tabs of this browser: the sign-in is one for all. */
	#tabs = new BroadcastChannel('picloud-session');

	constructor() {
		credentials.renew = (endpoint, problem) => this.#renew(endpoint, problem);
		live.onExpired = () => this.#expire();
		this.#tabs.onmessage = () => void this.#resume();
		// What happened while it was away is not known; a stream that was refused is asked for at once.
		presence.onBack(() => {
			if (!this.me || this.expired) return;
			live.tellAll();
			if (!live.connected) live.connect();
		});
	}

	async load(): Promise<void> {
		const [isSignedIn, me] = await Promise.all([credentials.restore(), api('GET /auth/me')]);
		if (!isSignedIn) return;
		this.me = me;
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
		await this.#goOn();
		this.tell();
	}

	/** Tell the other tabs that somebody signed in. */
	tell(): void {
		this.#tabs.postMessage(null);
	}

	/** Do without: what waits for the sign-in fails. */
	dismiss(): void {
		this.expired = false;
		const why = new Problem(401, { title: 'Sign in first', detail: 'Your session has ended.' });
		for (const { giveUp } of this.#waiting.splice(0)) giveUp(why);
	}

	async signOut(): Promise<void> {
		live.close();
		await api('POST /auth/logout').catch(() => undefined);
		credentials.forget();
		this.me = null;
		this.dismiss();
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

	#expire(): void {
		if (!this.me) return;
		live.close();
		this.expired = true;
	}

	async #renew(endpoint: string, problem: Problem): Promise<boolean> {
		if (!this.me || NOT_RENEWED.includes(endpoint)) return false;
		// Another tab signed in.
		if (problem.kind === 'csrf') return credentials.restore();
		if (problem.status !== 401) return false;
		this.#expire();
		await new Promise<void>((goOn, giveUp) => this.#waiting.push({ goOn, giveUp }));
		return true;
	}

	/** Another tab signed in. */
	async #resume(): Promise<void> {
		if (this.expired && (await credentials.restore())) await this.#goOn();
	}

	async #goOn(): Promise<void> {
		const [before, now] = [this.me, await api('GET /auth/me')];
		// What somebody else began is not for them to go on with.
		if (this.expired && before?.id !== now.id) return location.reload();
		this.me = now;
		this.count++;
		this.expired = false;
		for (const { goOn } of this.#waiting.splice(0)) goOn();
		live.connect();
	}
}

export const session = new Session();
