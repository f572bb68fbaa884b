import { PicloudError, ValidationError } from "./errors.js";
import { Execution } from "./execution.js";
import { fill, type Params, type ParamNames, type QueryValues, type Value } from "./path.js";
import type { Schema } from "./schema.js";
import { send, type CallOptions, type Wire } from "./send.js";

/** What an endpoint checks at run time, with zod, valibot, arktype or any other Standard Schema. */
export interface EndpointOptions<Req, Res, Query> {
  /** Checks the body before it is sent. */
  body?: Schema<Req>;
  /** Checks the query before it is sent. */
  query?: Schema<Query>;
  /** Checks the answer. */
  response?: Schema<unknown, Res>;
  /** How the route answers: `async` ones answer at once with an {@link Execution}. */
  dispatchMode?: "sync" | "async";
}

/** What a call without a body takes. */
export type Call<Path extends string, Query> = CallOptions &
  ([ParamNames<Path>] extends [never]
    ? { params?: Params<Path> }
    : { /** The values of the path's `{names}`. */ params: Params<Path> }) &
  (Record<never, never> extends Query ? { /** What comes after the `?`. */ query?: Query } : { query: Query });

/** What a call with a body takes. */
export type CallWithBody<Req, Path extends string, Query> = Call<Path, Query> &
  (undefined extends Req
    ? { /** Sent as JSON, unless it is a form, text with a content type, or bytes. */ body?: Req }
    : { body: Req });

/** The arguments of a call: they can be left out where nothing in them is needed. */
export type Args<T> = Record<never, never> extends T ? [call?: T] : [call: T];

/** A route of the app, ready to be called. */
export interface Endpoint<Req = unknown, Res = unknown, Path extends string = string, Query = QueryValues> {
  /** The path, its names not filled in. */
  readonly path: Path;
  /** Call it with GET. */
  readonly get: (...args: Args<Call<Path, Query>>) => Promise<Res>;
  /** Call it with POST. */
  readonly post: (...args: Args<CallWithBody<Req, Path, Query>>) => Promise<Res>;
  /** Call it with PUT. */
  readonly put: (...args: Args<CallWithBody<Req, Path, Query>>) => Promise<Res>;
  /** Call it with PATCH. */
  readonly patch: (...args: Args<CallWithBody<Req, Path, Query>>) => Promise<Res>;
  /** Call it with DELETE. */
  readonly delete: (...args: Args<CallWithBody<Req | undefined, Path, Query>>) => Promise<Res>;
}

/** Make an endpoint of a path. */
export function makeEndpoint<Req, Res, Path extends string, Query>(
  wire: Wire,
  path: Path,
  schemas: EndpointOptions<Req, Res, Query>,
): Endpoint<Req, Res, Path, Query> {
  const verb =
    (method: string) =>
    async (call: CallOptions & { params?: Record<string, Value>; query?: Query; body?: Req } = {}) => {
      const query = call.query && (await checked("query", schemas.query, call.query));
      const isBare = call.body === undefined && (method === "GET" || method === "DELETE");
      const body = isBare ? undefined : await checked("body", schemas.body, call.body);
      const filled = fill(path, call.params, query as QueryValues | undefined);
      const answer = await send(wire, { method, path: filled, body }, call);
      if (schemas.dispatchMode === "async") return execution(wire, answer.body) as Res;
      return (await checked("response", schemas.response, answer.body)) as Res;
    };
  return {
    path,
    get: verb("GET"),
    post: verb("POST"),
    put: verb("PUT"),
    patch: verb("PATCH"),
    delete: verb("DELETE"),
  } as Endpoint<Req, Res, Path, Query>;
}

/** A value as its schema makes it; without a schema, as it is. */
async function checked(of: ValidationError["of"], schema: Schema | undefined, value: unknown): Promise<unknown> {
  if (!schema) return value;
  const result = await schema["~standard"].validate(value);
  if (result.issues) throw new ValidationError(of, result.issues);
  return result.value;
}

function execution(wire: Wire, body: unknown): Execution {
  const { execution_id: id, accepted_at: acceptedAt } = (body ?? {}) as Record<string, unknown>;
  if (typeof id !== "string" || typeof acceptedAt !== "string") {
    throw new PicloudError("the answer has no execution: is the route `async`?");
  }
  return new Execution(wire, id, acceptedAt);
}
