/** A key of a collection, with its value. */
export interface Entry {
	/** For lists: the key. */
	id: string;
	key: string;
	value: unknown;
}
