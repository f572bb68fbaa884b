/**
 * Call the routes and follow the topics of a PiCloud app.
 *
 * @packageDocumentation
 */
export { Auth, type AuthOptions, type Session } from "./auth.js";
export { createClient, type Client, type ClientOptions } from "./client.js";
export type { Args, Call, CallWithBody, Endpoint, EndpointOptions } from "./endpoint.js";
export {
  ConnectionError,
  PicloudError,
  ProblemError,
  TimeoutError,
  ValidationError,
  type ProblemName,
} from "./errors.js";
export { Execution, type LogLine, type Outcome, type WaitOptions } from "./execution.js";
export type { GetToken, Line, Listener, Status, TopicSource } from "./line.js";
export type { ParamNames, Params, QueryValues, Value } from "./path.js";
export type { RealtimeOptions, Share } from "./realtime.js";
export type { Schema, SchemaIssue, SchemaResult } from "./schema.js";
export type { CallOptions } from "./send.js";
export {
  cookieStorage,
  localStorageStorage,
  memoryStorage,
  type CookieOptions,
  type SessionStorage,
} from "./storage.js";
export type { StreamEvent } from "./stream.js";
export { Subscription, type Follower, type Message, type SubscribeOptions } from "./subscription.js";
export { acrossTabs } from "./tabs.js";
export type { Backoff } from "./wait.js";
