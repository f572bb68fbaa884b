import type { Client } from "./client.js";
import type { Args, Call, Endpoint } from "./endpoint.js";
import type { Status } from "./line.js";
import type { CallOptions } from "./send.js";
import type { Message, SubscribeOptions } from "./subscription.js";
import { linked, type Linked } from "./wait.js";

/** A value that changes, and those who watch it. It works only while somebody does. */
export interface Store<T> {
  /** Watch it; answers how to stop. */
  readonly subscribe: (changed: () => void) => () => void;
  /** The value of now. */
  readonly get: () => T;
}

/** What a page knows of a topic. */
export interface TopicState<T> {
  /** The newest messages, the newest last. */
  readonly messages: readonly Message<T>[];
  /** How the subscription is. */
  readonly status: Status;
  /** What went wrong last, if something did and has not come right. */
  readonly error: Error | undefined;
}

/** How a page follows a topic. */
export interface TopicOptions<T> extends Omit<SubscribeOptions<T>, "onStatus" | "signal" | "bufferMax"> {
  /** How many messages are kept; 100 unless told, and none with 0. */
  keep?: number;
}

/** What a page knows of an answer. */
export interface EndpointState<T> {
  /** The last answer. */
  readonly data: T | undefined;
  /** Why there is no newer one. */
  readonly error: Error | undefined;
  /** Whether one is on its way. */
  readonly isLoading: boolean;
}

/** Follow a topic while somebody watches. */
export function topicStore<T>(
  client: Pick<Client, "subscribe">,
  topic: string,
  options: () => TopicOptions<T>,
): Store<TopicState<T>> {
  let lastEventId: string | undefined;
  return makeStore<TopicState<T>>({ messages: [], status: "connecting", error: undefined }, (change) => {
    lastEventId ??= options().lastEventId;
    const subscription = client.subscribe<T>(topic, {
      get getToken() {
        return options().getToken;
      },
      ...(lastEventId !== undefined && { lastEventId }),
      onMessage: (message) => {
        options().onMessage?.(message);
        // `slice(-0)` would be all of them.
        const keep = Math.max(0, options().keep ?? 100);
        change(({ messages }) => ({ messages: keep ? [...messages, message].slice(-keep) : [] }));
      },
      onGap: () => options().onGap?.(),
      onStatus: (status, error) => change(() => ({ status, error })),
    });
    return () => {
      // Whoever watches again goes on from here.
      lastEventId = subscription.lastEventId;
      subscription.close();
    };
  });
}

/** A store of an answer, which can be asked for again. */
export interface EndpointStore<T> extends Store<EndpointState<T>> {
  /** Call the route again; what was answered stays until there is a new answer. */
  readonly reload: () => void;
}

/** Call a route with GET when somebody begins to watch. */
export function endpointStore<Req, Res, Path extends string, Query>(
  endpoint: Endpoint<Req, Res, Path, Query>,
  args: Args<Call<Path, Query>>,
): EndpointStore<Res> {
  let current: Linked | undefined;
  let changeState: Change<EndpointState<Res>> | undefined;
  const load = () => {
    const change = changeState;
    if (!change) return;
    current?.abort(undefined);
    const mine = (current = linked((args[0] as CallOptions | undefined)?.signal));
    change(() => ({ isLoading: true }));
    const call = { ...args[0], signal: mine.signal } as unknown as Call<Path, Query>;
    const ended = (how: Partial<EndpointState<Res>>) => {
      mine.release();
      if (current === mine) change(() => ({ ...how, isLoading: false }));
    };
    endpoint.get(...([call] as Args<Call<Path, Query>>)).then(
      (data) => ended({ data, error: undefined }),
      (error: unknown) => ended({ error: error as Error }),
    );
  };
  const first = { data: undefined, error: undefined, isLoading: true };
  const store = makeStore<EndpointState<Res>>(first, (change) => {
    changeState = change;
    load();
    return () => {
      changeState = undefined;
      current?.abort(undefined);
      current = undefined;
    };
  });
  return { ...store, reload: load };
}

type Change<T> = (to: (state: T) => Partial<T>) => void;

function makeStore<T>(first: T, start: (change: Change<T>) => () => void): Store<T> {
  let state = first;
  let stop: (() => void) | undefined;
  const watchers = new Set<() => void>();
  const change: Change<T> = (to) => {
    state = { ...state, ...to(state) };
    for (const changed of watchers) changed();
  };
  return {
    get: () => state,
    subscribe(changed) {
      watchers.add(changed);
      stop ??= start(change);
      return () => {
        watchers.delete(changed);
        if (watchers.size > 0) return;
        stop?.();
        stop = undefined;
      };
    },
  };
}
