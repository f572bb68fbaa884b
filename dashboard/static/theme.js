// Before the first paint, so that a dark page does not begin white.
document.documentElement.dataset.theme =
	localStorage.getItem('picloud.theme') ??
	(matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
// SvelteKit reads the address as encoded text, and shows nothing at all where a % in it means none.
try {
	decodeURI(location.pathname);
} catch {
	location.replace(location.pathname.replaceAll(/%(?![0-9a-f]{2})/gi, '%25') + location.search);
}
