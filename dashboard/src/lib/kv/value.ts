import { tagged, type Tagged } from '#lib/api/client.ts';
import type { Json } from '#lib/json.ts';

/** The value of a key, as it was written. */
export async function valueAt(path: { app: string; collection: string; key: string }): Promise<Tagged<Json>> {
	const { json, etag } = await tagged('GET /apps/{app}/kv/{collection}/{key}', { path });
	return { answer: json, etag };
}
