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
	/** Who may use it, where not everybody may who sees the app, or the instance. */
	only?: 'app admins' | 'admins';
}

/** The pages of an app. */
function ofApp(app: App, unresolved: number): Entry[] {
	const slug = app.slug;
	const only = 'app admins';
	return [
		{ title: 'Overview', href: path`/apps/${slug}`, icon: LayoutDashboard, exact: true },
		{ title: 'Executions', href: path`/apps/${slug}/executions`, icon: Activity },
		{ title: 'Dead letters', href: path`/apps/${slug}/dead-letters`, icon: MailWarning, badge: unresolved, only },
		{ title: 'Scripts', href: path`/apps/${slug}/scripts`, icon: FileCode },
		{ title: 'Routes', href: path`/apps/${slug}/routes`, icon: Signpost },
		{ title: 'Triggers', href: path`/apps/${slug}/triggers`, icon: Zap, only },
		{ title: 'Topics', href: path`/apps/${slug}/topics`, icon: Rss, only },
		{ title: 'Key-value', href: path`/apps/${slug}/kv`, icon: Database },
		{ title: 'Secrets', href: path`/apps/${slug}/secrets`, icon: KeyRound, only },
		{ title: 'Members', href: path`/apps/${slug}/members`, icon: Users, only },
		{ title: 'Audit log', href: path`/apps/${slug}/audit`, icon: ScrollText, only },
		{ title: 'Settings', href: path`/apps/${slug}/settings`, icon: Settings, only }
	];
}

/** The pages of the instance. */
function ofInstance(): Entry[] {
	const only = 'admins';
	return [
		{ title: 'Apps', href: path`/`, icon: Boxes, exact: true },
		{ title: 'Users', href: path`/users`, icon: Users, only },
		{ title: 'Audit log', href: path`/audit`, icon: ListTree, only },
		{ title: 'Instance', href: path`/instance`, icon: Server, only }
	];
}

function may({ only }: Entry, app?: App): boolean {
	if (!only) return true;
	return app ? session.has('app_admin', app.id) : session.isAdmin;
}

/** The pages of an app that whoever is signed in may use. */
export function openOfApp(app: App, unresolved: number): Entry[] {
	return ofApp(app, unresolved).filter((entry) => may(entry, app));
}

/** The pages of the instance that whoever is signed in may use. */
export function openOfInstance(): Entry[] {
	return ofInstance().filter((entry) => may(entry));
}

/** Whether an address is that of a page, or lies below it. */
export function isAt({ href, exact }: Entry, address: string): boolean {
	const [here, there] = [address.replace(/\/$/, ''), href.replace(/\/$/, '')];
	return here === there || (!exact && here.startsWith(`${there}/`));
}

/** The page at an address, where whoever is signed in may not use it. */
export function closedAt(address: string, app: App | undefined): Entry | undefined {
	const entries = app ? ofApp(app, 0) : ofInstance();
	return entries.find((entry) => isAt(entry, address) && !may(entry, app));
}
