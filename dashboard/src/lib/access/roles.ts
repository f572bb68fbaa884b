/** Roles in an app, from the least, with what they are for. */
export const APP_ROLES = [
	{ value: 'viewer', label: 'Viewer', about: 'looks' },
	{ value: 'editor', label: 'Editor', about: 'changes scripts, routes and data' },
	{ value: 'app_admin', label: 'App admin', about: 'decides who may, and what becomes of what failed' }
] as const;

/** Roles on the instance. */
export const INSTANCE_ROLES = [
	{ value: 'member', label: 'Member', about: 'what their roles in apps say' },
	{ value: 'admin', label: 'Admin', about: 'everything, except to owners' },
	{ value: 'owner', label: 'Owner', about: 'everything' }
] as const;

/** What an API key may be allowed. */
export const SCOPES = [
	'script:read',
	'script:write',
	'route:write',
	'domain:manage',
	'app:admin',
	'log:read',
	'instance:admin'
] as const;
