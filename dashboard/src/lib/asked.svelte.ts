/** What somebody is asked about, before it is done: an item of a list. */
export class Asked<T> {
	open = $state(false);
	/** It stays when the dialog closes, which still shows it while it goes. */
	item = $state.raw<T | null>(null);

	about(item: T): void {
		this.item = item;
		this.open = true;
	}
}
