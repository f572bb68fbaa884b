import { base } from './base.ts';

/** The address of a page of ours. Parts are escaped: path`/apps/${slug}/kv`. */
export function path(text: TemplateStringsArray, ...parts: (string | number)[]): string {
	const escaped = parts.map((part) => encodeURIComponent(part));
	return base + String.raw({ raw: text }, ...escaped);
}

/** An address with a query; what is empty is left out. */
export function withQuery(address: string, query: Record<string, string | undefined>): string {
	const search = new URLSearchParams();
	for (const [name, value] of Object.entries(query)) if (value) search.set(name, value);
	return search.size ? `${address}?${search}` : address;
}
