import type { Auth } from "./auth.js";
import { ConnectionError, PicloudError, ProblemError, TimeoutError } from "./errors.js";
import { platform } from "./platform.js";
import { backoffMs, endAfter, linked, wait, within } from "./wait.js";

/** What can be said of one call; the client's own settings hold where it is left out. */
export interface CallOptions {
  /** Aborts the call, its retries included; it then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** How long the call may take, with all its retries, in milliseconds; 30,000 unless told, 0 for no end. */
  timeoutMs?: number | undefined;
  /** How often it is tried again where that is safe; 2 unless told. */
  retries?: number | undefined;
  /** More header fields. */
  headers?: Record<string, string> | undefined;
  /**
   * Make a call that would not be safe to repeat safe: sent as `Idempotency-Key`, which the route
   * must be set up for. `true` makes a key for this call.
   */
  idempotencyKey?: string | boolean | undefined;
}

/** How the client reaches the server. */
export interface Wire {
  readonly baseUrl: string;
  readonly fetch: typeof globalThis.fetch;
  readonly timeoutMs: number;
  readonly retries: number;
  /** Whose token goes with the calls. */
  auth?: Auth;
}

/** One call, as it goes out. */
export interface Outgoing {
  readonly method: string;
  /** From `/` on, filled in. */
  readonly path: string;
  readonly body?: unknown;
}

/** What came back: an answer with a status below 400, and what its body holds. */
export interface Incoming {
  readonly response: Response;
  readonly body: unknown;
}

const BACKOFF = { baseMs: 300, maxMs: 10_000 };

/** Call the server, again where that is safe. */
export async function send(wire: Wire, outgoing: Outgoing, options: CallOptions = {}): Promise<Incoming> {
  const { timeoutMs = wire.timeoutMs, retries = wire.retries, signal } = options;
  const headers = new Headers(options.headers);
  if (options.idempotencyKey) {
    headers.set("idempotency-key", options.idempotencyKey === true ? randomKey() : options.idempotencyKey);
  }
  // One that may not arrive twice is made once, unless a key makes it safe.
  const isRepeatable = !["POST", "PATCH"].includes(outgoing.method) || headers.has("idempotency-key");
  const ending = linked(signal);
  const deadline = timeoutMs ? Date.now() + timeoutMs : Infinity;
  const timer = endAfter(timeoutMs, ending, () => new TimeoutError(`no answer within ${timeoutMs} ms`));
  try {
    const body = await within(() => encode(outgoing.body, headers), ending.signal);
    const init = { method: outgoing.method, headers, body, signal: ending.signal } as RequestInit;
    let renewed = false;
    for (let failures = 1; ; failures++) {
      const token = await within(() => signIn(wire, headers, options), ending.signal);
      try {
        const response = await attempt(wire, wire.baseUrl + outgoing.path, init);
        return { response, body: await decode(response) };
      } catch (error) {
        ending.signal.throwIfAborted();
        if (token && !renewed && error instanceof ProblemError && error.status === 401) {
          // Nothing ran, so any call can be made again with a token that holds.
          renewed = true;
          if (await within(() => wire.auth?.renew(token), ending.signal)) continue;
        }
        const pauseMs = isRepeatable && failures <= retries ? pauseBefore(error, failures) : undefined;
        if (pauseMs === undefined || Date.now() + pauseMs > deadline) throw error;
        await wait(pauseMs, ending.signal);
      }
    }
  } finally {
    clearTimeout(timer);
    ending.release();
  }
}

/** Put the caller's token into the headers, unless the call brings its own. */
async function signIn(wire: Wire, headers: Headers, options: CallOptions): Promise<string | null> {
  if (new Headers(options.headers).has("authorization")) return null;
  const token = (await wire.auth?.token()) ?? null;
  if (token) headers.set("authorization", `Bearer ${token}`);
  else headers.delete("authorization");
  return token;
}

/** Make one request; its answer's body is still to be read. Throws where it is none below 400. */
export async function attempt(wire: Wire, url: string, init: RequestInit): Promise<Response> {
  let response: Response;
  // A browser's own refuses to be called as a method of something else.
  const { fetch } = wire;
  try {
    response = await fetch(url, init);
  } catch (cause) {
    throw new ConnectionError(`${url} could not be reached`, { cause });
  }
  if (!response.ok) throw new ProblemError(response, await decode(response));
  return response;
}

/** How long to wait before a repeatable call is made again; undefined when that would not help. */
export function pauseBefore(error: unknown, failures: number): number | undefined {
  const usual = backoffMs(failures, BACKOFF);
  if (error instanceof ConnectionError) return usual;
  if (!(error instanceof ProblemError)) return undefined;
  // The first call with our key still runs: its answer is to come.
  if (error.problem === "idempotency_in_progress") return usual;
  // Where a script ran and failed, it would fail again; what one answers itself is taken at its word.
  const failed = error.problem && error.executionId;
  const transient = [408, 425, 429, 502, 503, 504].includes(error.status) && !failed;
  return transient ? Math.max(error.retryAfterMs ?? 0, usual) : undefined;
}

/** A body as `fetch` takes it; all that is no body of the platform's own is JSON. */
async function encode(body: unknown, headers: Headers): Promise<BodyInit | undefined> {
  if (body === undefined) return undefined;
  // Whole, as the server takes it: so it can be sent again, and by every browser.
  if (platform.ReadableStream && body instanceof ReadableStream) return new Response(body).arrayBuffer();
  const native = [FormData, URLSearchParams, Blob, ArrayBuffer];
  const asItIs =
    native.some((kind) => body instanceof kind) ||
    ArrayBuffer.isView(body) ||
    (typeof body === "string" && headers.has("content-type"));
  if (asItIs) return body as BodyInit;
  if (!headers.has("content-type")) headers.set("content-type", "application/json");
  const text = JSON.stringify(body);
  // A map, an answer or a function would silently arrive as `{}`, or not at all.
  if (!text || (text === "{}" && Object.prototype.toString.call(body) !== "[object Object]")) {
    throw new PicloudError("the body is nothing that JSON can say");
  }
  return text;
}

/** What a body holds, by its content type; undefined when it is empty. */
async function decode(response: Response): Promise<unknown> {
  const type = response.headers.get("content-type") ?? "";
  const isJson = /[/+]json\b/.test(type);
  let text: string;
  try {
    if (type && !isJson && !type.startsWith("text/")) return await response.blob();
    text = await response.text();
  } catch (cause) {
    throw new ConnectionError("the answer was cut off", { cause });
  }
  if (!text) return undefined;
  if (!isJson) return text;
  try {
    return JSON.parse(text);
  } catch (cause) {
    // A status says more than a body that cannot be read.
    if (!response.ok) return text;
    throw new PicloudError("the answer is not the JSON that it says it is", { cause });
  }
}

/** 128 random bits as text. `crypto.randomUUID` is missing on pages without TLS. */
export function randomKey(): string {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("-");
}
