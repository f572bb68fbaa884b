/** Where the binary serves the dashboard; vite.config.ts says the same to SvelteKit. */
export const base = '/admin';
