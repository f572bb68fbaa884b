/**
 * Stores for Svelte.
 *
 * @packageDocumentation
 */
import { readable, type Readable } from "svelte/store";

import type { Client } from "./client.js";
import type { Args, Call, Endpoint } from "./endpoint.js";
import * as stores from "./store.js";
import type { EndpointState, Store, TopicOptions, TopicState } from "./store.js";

export type { EndpointState, TopicOptions, TopicState } from "./store.js";

/** A store of a topic: it follows while a component uses it. */
export function topicStore<T = unknown>(
  client: Pick<Client, "subscribe">,
  topic: string,
  options: TopicOptions<T> = {},
): Readable<TopicState<T>> {
  return readableOf(stores.topicStore<T>(client, topic, () => options));
}

/** A store of an answer: the route is called with GET when a component begins to use it. */
export function endpointStore<Req, Res, Path extends string, Query>(
  endpoint: Endpoint<Req, Res, Path, Query>,
  ...args: Args<Call<Path, Query>>
): Readable<EndpointState<Res>> & {
  /** Call the route again. */
  readonly reload: () => void;
} {
  const store = stores.endpointStore(endpoint, args);
  return { ...readableOf(store), reload: store.reload };
}

function readableOf<T>(store: Store<T>): Readable<T> {
  return readable(store.get(), (set) => {
    const stop = store.subscribe(() => set(store.get()));
    set(store.get());
    return stop;
  });
}
