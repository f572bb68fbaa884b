// The first that fits is it: most browsers claim to be others, too.
const BROWSERS: [RegExp, string][] = [
	[/Edg\//, 'Edge'],
	[/OPR\//, 'Opera'],
	[/Firefox\//, 'Firefox'],
	[/Chrom(e|ium)\//, 'Chrome'],
	[/Safari\//, 'Safari']
];
const SYSTEMS: [RegExp, string][] = [
	[/Android/, 'Android'],
	[/iPhone|iPad/, 'iOS'],
	[/Windows/, 'Windows'],
	[/Mac OS X/, 'macOS'],
	[/CrOS/, 'ChromeOS'],
	[/Linux/, 'Linux']
];

/** What somebody signed in with, by its `User-Agent`: "Firefox on Windows", or the name of a program. */
export function agentName(agent: string | null): string {
	if (!agent) return 'Unknown';
	const among = (known: [RegExp, string][]) => known.find(([sign]) => sign.test(agent))?.[1];
	const [browser, system] = [among(BROWSERS), among(SYSTEMS)];
	if (browser) return system ? `${browser} on ${system}` : browser;
	return agent.split(/[/ (]/)[0] || 'Unknown';
}
