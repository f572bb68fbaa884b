// Before the first paint, so that a dark page does not begin white.
document.documentElement.dataset.theme =
	localStorage.getItem('picloud.theme') ??
	(matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
