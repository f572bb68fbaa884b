import { goto } from '$app/navigation';
import { page } from '$app/state';

/** Filters that live in the address, so that a view can be sent to somebody. */
export class Filters<Name extends string> {
	constructor(private readonly names: readonly Name[]) {}

	get(name: Name): string {
		return page.url.searchParams.get(name) ?? '';
	}

	/** Those that are set. */
	all(): Partial<Record<Name, string>> {
		const set: Partial<Record<Name, string>> = {};
		for (const name of this.names) {
			const value = this.get(name);
			if (value) set[name] = value;
		}
		return set;
	}

	get any(): boolean {
		return this.names.some((name) => this.get(name) !== '');
	}

	set(changes: Partial<Record<Name, string>>): void {
		const url = new URL(page.url.href);
		for (const [name, value] of Object.entries<string | undefined>(changes)) {
			if (value) url.searchParams.set(name, value);
			else url.searchParams.delete(name);
		}
		void goto(url, { replace: true, reset: false });
	}

	clear(): void {
		this.set(Object.fromEntries(this.names.map((name) => [name, ''])) as Record<Name, string>);
	}
}
