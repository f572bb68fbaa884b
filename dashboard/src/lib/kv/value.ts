import { tagged, type Tagged } from '#lib/api/client.ts';
import type { Json } from '#lib/json.ts';

/** Where a value is. */
export interface Place {
	app: string;
	collection: string;
	key: string;
}

/** The same for a call: by the query, since a browser takes `.` and `..` out of every path. */
export function at({ app, collection, key }: Place) {
	return { path: { app }, query: { collection, key } };
}

/** The value of a key, as it was written. */
export async function valueAt(place: Place): Promise<Tagged<Json>> {
	const { json, etag } = await tagged('GET /apps/{app}/kv-value', at(place));
	return { answer: json, etag };
}
