import adapter from '@sveltejs/adapter-static';
import { sveltekit } from '@sveltejs/kit/vite';
import tailwindcss from '@tailwindcss/vite';
import { defineConfig } from 'vitest/config';

/** A server to develop against: `picloud serve` listens here. */
const server = process.env.PICLOUD_URL ?? 'http://127.0.0.1:8080';

export default defineConfig({
	plugins: [
		tailwindcss(),
		sveltekit({
			adapter: adapter({ pages: '../build/dashboard', fallback: 'index.html', precompress: true }),
			paths: { base: '/admin', relative: false },
			// The boot script is inline; its hash is in the page's policy. `http/dashboard.rs` adds
			// the directives that a page cannot give itself.
			csp: {
				mode: 'hash',
				directives: {
					'default-src': ['none'],
					'script-src': ['self'],
					'style-src': ['self'],
					// What hides SvelteKit's announcer of pages from the eye, and no other attribute.
					'style-src-attr': [
						'unsafe-hashes',
						'sha256-S8qMpvofolR8Mpjy4kQvEm7m1q8clzU4dfDH0AmvZjo='
					],
					'font-src': ['self'],
					'img-src': ['self', 'data:'],
					'connect-src': ['self']
				}
			},
			// A page that is open while the server is upgraded asks for this and loads itself anew.
			version: { name: process.env.PICLOUD_DASHBOARD_VERSION ?? 'development' },
			compilerOptions: { runes: true }
		})
	],
	environments: {
		client: {
			build: {
				rolldownOptions: {
					output: {
						// What nearly every page shows, in one file: each icon in one of its own made forty requests,
						// of which a browser has six under way, before anything was seen.
						codeSplitting: {
							groups: [
								// What a page says of itself, its version say: SvelteKit's other modules read it when they
								// are evaluated, so what sets it must not be in one file with them.
								{ name: 'payload', test: /\/kit\/src\/runtime\/client\/payload\.js$/, priority: 1 },
								{
									name: 'shared',
									test: /@lucide\/svelte|\/src\/lib\/(api|apps|shell|ui)\/|\/src\/lib\/[^/]+$/
								}
							]
						}
					}
				}
			}
		}
	},
	server: { proxy: { '/api': server, '/version': server, '/readyz': server } },
	test: { include: ['src/**/*.test.ts'] }
});
