import { ConnectionError, PicloudError } from "./errors.js";
import { platform } from "./platform.js";
import { attempt, type Wire } from "./send.js";
import { sseParser } from "./sse.js";
import { endAfter, linked } from "./wait.js";

/** One event of a stream. */
export interface StreamEvent {
  /** Its kind: `message`, `gap`, … */
  readonly event: string;
  /** The place to resume from; an event without one moves nothing. */
  readonly id?: string | undefined;
  /** What it carries. */
  readonly data: Record<string, unknown>;
}

/** How a stream is asked for, and who hears it. */
export interface StreamRequest {
  /** From `/` on. */
  readonly path: string;
  readonly token?: string | null | undefined;
  readonly lastEventId?: string | undefined;
  readonly signal: AbortSignal;
  /** The server accepted; its clock says this, in milliseconds since 1970. */
  onOpen?(serverNow: number): void;
  onEvent(event: StreamEvent): void;
  /** An event came whose data is no JSON object: it would be the same another time. */
  onUnreadable(event: string, id: string | undefined): void;
}

const NO_STREAMS = "`fetch` cannot read streams: give createClient one that can";

/** The server comments every 15 s; after this long without a byte the connection is lost. */
const SILENCE_MS = 45_000;

/** Read a stream. Resolves when the server ends it; rejects when it refuses, or is lost. */
export async function readStream(wire: Wire, request: StreamRequest): Promise<void> {
  refuseReactNative(wire);
  const ending = linked(request.signal);
  let watch: ReturnType<typeof setTimeout> | undefined;
  const heard = () => {
    clearTimeout(watch);
    watch = endAfter(SILENCE_MS, ending, () => new ConnectionError("the stream fell silent"));
  };
  try {
    heard();
    const headers = new Headers({ accept: "text/event-stream" });
    if (request.token) headers.set("authorization", `Bearer ${request.token}`);
    if (request.lastEventId) headers.set("last-event-id", request.lastEventId);
    const init: RequestInit = { method: "GET", headers, cache: "no-store", signal: ending.signal };
    const response = await attempt(wire, wire.baseUrl + request.path, init);
    if (!response.body) throw new PicloudError(`this ${NO_STREAMS}`);
    request.onOpen?.(Date.parse(response.headers.get("date") ?? "") || Date.now());
    const parse = sseParser(({ event, id, data }) => {
      // What was read before the end may still be in the piece.
      if (ending.signal.aborted) return;
      const members = membersOf(data);
      if (members) request.onEvent({ event, id, data: members });
      else request.onUnreadable(event, id);
    });
    const decoder = new TextDecoder();
    const reader = response.body.getReader();
    // Some platforms never tell a reader of an end that came between two pieces.
    while (!ending.signal.aborted) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      parse(decoder.decode(value, { stream: true }));
    }
  } catch (error) {
    if (ending.signal.aborted && !request.signal.aborted) throw ending.signal.reason;
    if (error instanceof PicloudError) throw error;
    throw new ConnectionError("the stream was lost", { cause: error });
  } finally {
    clearTimeout(watch);
    ending.release();
    ending.abort(undefined);
  }
}

/** What a JSON object holds; undefined where the text is none. */
function membersOf(text: string): StreamEvent["data"] | undefined {
  try {
    const value = JSON.parse(text) as unknown;
    return typeof value === "object" && value !== null ? (value as StreamEvent["data"]) : undefined;
  } catch {
    return undefined;
  }
}

/** React Native's own `fetch` waits for the whole answer: a stream would stay silent for ever. */
export function refuseReactNative(wire: Wire): void {
  if (platform.navigator?.product === "ReactNative" && wire.fetch === globalThis.fetch) {
    throw new PicloudError(`React Native's own ${NO_STREAMS}, that of \`expo/fetch\` say`);
  }
}
