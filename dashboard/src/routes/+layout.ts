// All of it runs in the browser: the binary serves one page for every address below /admin.
export const ssr = false;
export const prerender = false;
