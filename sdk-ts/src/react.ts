/**
 * Hooks for React.
 *
 * @packageDocumentation
 */
import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";

import type { Client } from "./client.js";
import type { Args, Call, Endpoint } from "./endpoint.js";
import { endpointStore, topicStore, type EndpointState, type TopicOptions, type TopicState } from "./store.js";

export type { EndpointState, TopicOptions, TopicState } from "./store.js";

/** Follow a topic while the component is there. A change of the options needs no new connection. */
export function useTopic<T = unknown>(
  client: Pick<Client, "subscribe">,
  topic: string,
  options: TopicOptions<T> = {},
): TopicState<T> {
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
  });
  const store = useMemo(() => topicStore<T>(client, topic, () => latest.current), [client, topic]);
  return useSyncExternalStore(store.subscribe, store.get, store.get);
}

/** What {@link useEndpoint} answers. */
export interface EndpointResult<T> extends EndpointState<T> {
  /** Call the route again. */
  readonly reload: () => void;
}

/** Call a route with GET, again when what it is called with changes. */
export function useEndpoint<Req, Res, Path extends string, Query>(
  endpoint: Endpoint<Req, Res, Path, Query>,
  ...args: Args<Call<Path, Query>>
): EndpointResult<Res> {
  // The arguments are new objects each time: it is what they say that counts. JSON knows no `bigint`, and no `NaN`.
  const key = JSON.stringify(args, (_, value: unknown) =>
    /^(bigint|number)$/.test(typeof value) ? String(value) : value,
  );
  const store = useMemo(() => endpointStore(endpoint, args), [endpoint, key]);
  const state = useSyncExternalStore(store.subscribe, store.get, store.get);
  return { ...state, reload: store.reload };
}
