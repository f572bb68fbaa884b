import type { Component } from 'svelte';
import Activity from '@lucide/svelte/icons/activity';
import Boxes from '@lucide/svelte/icons/boxes';
import Database from '@lucide/svelte/icons/database';
import FileCode from '@lucide/svelte/icons/file-code';
import KeyRound from '@lucide/svelte/icons/key-round';
import LayoutDashboard from '@lucide/svelte/icons/layout-dashboard';
import ListTree from '@lucide/svelte/icons/list-tree';
import MailWarning from '@lucide/svelte/icons/mail-warning';
import Rss from '@lucide/svelte/icons/rss';
import ScrollText from '@lucide/svelte/icons/scroll-text';
import Server from '@lucide/svelte/icons/server';
import Settings from '@lucide/svelte/icons/settings';
import Signpost from '@lucide/svelte/icons/signpost';
import Users from '@lucide/svelte/icons/users';
import Zap from '@lucide/svelte/icons/zap';
import type { App } from '#lib/api/types.ts';
import { path } from '#lib/paths.ts';
import { session } from '#lib/session.svelte.ts';

export interface Entry {
	title: string;
	href: string;
	icon: Component<{ size?: number }>;
	/** It is current on this very page only, not on those below. */
	exact?: boolean;
	/** How many things there wait for somebody; none at 0. */
	badge?: number;
}

/** The pages of an app that whoever is signed in may use. */
export function ofApp(app: App, unresolved: number): Entry[] {
	const slug = app.slug;
	const everybody: Entry[] = [
		{ title: 'Overview', href: path`/apps/${slug}`, icon: LayoutDashboard, exact: true },
		{ title: 'Executions', href: path`/apps/${slug}/executions`, icon: Activity }
	];
	const deadLetters: Entry = {
		title: 'Dead letters',
		href: path`/apps/${slug}/dead-letters`,
		icon: MailWarning,
		badge: unresolved
	};
	const build: Entry[] = [
		{ title: 'Scripts', href: path`/apps/${slug}/scripts`, icon: FileCode },
		{ title: 'Routes', href: path`/apps/${slug}/routes`, icon: Signpost }
	];
	const triggers: Entry = { title: 'Triggers', href: path`/apps/${slug}/triggers`, icon: Zap };
	const kv: Entry = { title: 'Key-value', href: path`/apps/${slug}/kv`, icon: Database };
	if (!session.has('app_admin', app.id)) return [...everybody, ...build, kv];
	return [
		...everybody,
		deadLetters,
		...build,
		triggers,
		{ title: 'Topics', href: path`/apps/${slug}/topics`, icon: Rss },
		kv,
		{ title: 'Secrets', href: path`/apps/${slug}/secrets`, icon: KeyRound },
		{ title: 'Members', href: path`/apps/${slug}/members`, icon: Users },
		{ title: 'Audit log', href: path`/apps/${slug}/audit`, icon: ScrollText },
		{ title: 'Settings', href: path`/apps/${slug}/settings`, icon: Settings }
	];
}

/** The pages of the instance. */
export function ofInstance(): Entry[] {
	const everybody: Entry[] = [{ title: 'Apps', href: path`/`, icon: Boxes, exact: true }];
	if (!session.isAdmin) return everybody;
	return [
		...everybody,
		{ title: 'Users', href: path`/users`, icon: Users },
		{ title: 'Audit log', href: path`/audit`, icon: ListTree },
		{ title: 'Instance', href: path`/instance`, icon: Server }
	];
}
