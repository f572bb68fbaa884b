import { Auth, type AuthOptions } from "./auth.js";
import { makeEndpoint, type Endpoint, type EndpointOptions } from "./endpoint.js";
import type { Execution } from "./execution.js";
import type { QueryValues } from "./path.js";
import { Realtime, type RealtimeOptions } from "./realtime.js";
import type { Wire } from "./send.js";
import type { SubscribeOptions, Subscription } from "./subscription.js";

/** What a client is made with. */
export interface ClientOptions {
  /** Where the app is: `https://shop.example.com`; a page of the app itself may say `/`. */
  baseUrl: string;
  /** How the app's users sign in. */
  auth?: AuthOptions;
  /** How topics are followed. */
  realtime?: RealtimeOptions;
  /** Another `fetch` than the platform's. */
  fetch?: typeof globalThis.fetch;
  /** How long a call may take, with all its retries, in milliseconds; 30,000 unless told, 0 for no end. */
  timeoutMs?: number;
  /** How often a call is tried again where that is safe; 2 unless told. */
  retries?: number;
}

/** An app, as its front end sees it. */
export interface Client {
  /**
   * A route of the app. `client.endpoint<NewUser, User>("/users")` says what goes in and comes out;
   * with schemas, and with `endpoint("/users/{id}")` alone, the compiler finds out by itself.
   */
  endpoint<Req = unknown, Res = unknown, Path extends string = string, Query = QueryValues>(
    path: Path,
    options: EndpointOptions<Req, Res, Query> & { dispatchMode: "async" },
  ): Endpoint<Req, Execution, Path, Query>;
  endpoint<Req = unknown, Res = unknown, Path extends string = string, Query = QueryValues>(
    path: Path,
    options?: EndpointOptions<Req, Res, Query> & { dispatchMode?: "sync" },
  ): Endpoint<Req, Res, Path, Query>;
  /** Follow a topic that somebody opened. */
  subscribe<T = unknown>(topic: string, options?: SubscribeOptions<T>): Subscription<T>;
  /** Signs in to the app. */
  readonly auth: Auth;
}

/** Make a client of an app. It opens no connection before it is used. */
export function createClient(options: ClientOptions): Client {
  const wire: Wire = {
    baseUrl: options.baseUrl.replace(/\/+$/, ""),
    fetch: options.fetch ?? globalThis.fetch,
    timeoutMs: options.timeoutMs ?? 30_000,
    retries: options.retries ?? 2,
  };
  const auth = new Auth(wire, options.auth);
  wire.auth = auth;
  const realtime = new Realtime(wire, options.realtime);
  const endpoint = (path: string, schemas: EndpointOptions<unknown, unknown, never> = {}) =>
    makeEndpoint(wire, path, schemas);
  return {
    // What it answers is what the overloads say.
    endpoint: endpoint as unknown as Client["endpoint"],
    subscribe: (topic, options = {}) => realtime.subscribe(topic, options),
    auth,
  };
}
