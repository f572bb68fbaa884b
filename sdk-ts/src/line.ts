import { ConnectionError, PicloudError, ProblemError, TimeoutError } from "./errors.js";
import { platform } from "./platform.js";
import type { Wire } from "./send.js";
import { readStream, type StreamEvent } from "./stream.js";
import { backoffMs, TIMER_MAX_MS, wait, within, type Backoff } from "./wait.js";

/** How long `getToken` may take. */
const TOKEN_MS = 30_000;

/**
 * How a subscription is:
 * `connecting` for the first time, `open`, `reconnecting` after the connection was lost,
 * `paused` because the page is hidden or the reader is behind, or `closed` for good.
 */
export type Status = "connecting" | "open" | "reconnecting" | "paused" | "closed";

/** Gets a subscriber token that is good for these topics, from a route of the app; null for none. */
export type GetToken = (topics: readonly string[]) => string | null | Promise<string | null>;

/** Who is told what comes over a line. */
export interface Listener {
  /** A `ready`, `message` or `gap` arrived. */
  onEvent(event: StreamEvent): void;
  /** The line is in another state; with what went wrong, if something did. */
  onStatus(status: Status, error?: Error): void;
  /** These topics are over, for this reason; they are not asked for any more. */
  onEnd(topics: readonly string[], error: Error): void;
}

/** Who has tokens for a line, if anybody does. */
export interface TokenSource {
  /** As it is now. */
  readonly getToken: GetToken | undefined;
}

/** How lines behave. */
export interface LineSettings {
  readonly backoff: Backoff;
  /** Where to begin; now, when left out. */
  readonly lastEventId?: string | undefined;
}

/** What follows topics: a connection of our own, or one that tabs share. */
export interface TopicSource {
  /** The place to resume from. */
  readonly cursor: string | undefined;
  /** Follow just these topics. */
  want(topics: readonly string[]): void;
  /** Keep no connection for now, or follow again. */
  pause(paused: boolean): void;
}

/** One connection for many topics. It comes back by itself, at the place where it was lost. */
export class Line implements TopicSource {
  cursor: string | undefined;
  readonly #wire: Wire;
  readonly #tokens: TokenSource;
  readonly #settings: LineSettings;
  readonly #listener: Listener;
  #topics: readonly string[] = [];
  #paused = false;
  #running = false;
  /** Ends the connection, or the pause before the next. */
  #ending = new AbortController();
  #planned: ReturnType<typeof setTimeout> | undefined;
  #token: string | null | undefined;
  #expired = false;
  #renewing: ReturnType<typeof setTimeout> | undefined;

  constructor(wire: Wire, tokens: TokenSource, settings: LineSettings, listener: Listener) {
    this.#wire = wire;
    this.#tokens = tokens;
    this.#settings = settings;
    this.#listener = listener;
    this.cursor = settings.lastEventId;
  }

  want(topics: readonly string[]): void {
    if (same(topics, this.#topics)) return;
    // A token for the old topics may not do for the new.
    if (topics.some((topic) => !this.#topics.includes(topic))) this.#token = undefined;
    this.#topics = topics;
    if (topics.length === 0) return this.#restart();
    // Those who subscribe at the same moment share one connection.
    this.#planned ??= setTimeout(() => this.#restart(), 0);
  }

  pause(paused: boolean): void {
    if (this.#paused === paused) return;
    this.#paused = paused;
    this.#restart();
  }

  #restart(): void {
    clearTimeout(this.#planned);
    this.#planned = undefined;
    this.#ending.abort();
    if (!this.#running) void this.#run();
  }

  async #run(): Promise<void> {
    this.#running = true;
    const online = () => this.#restart();
    platform.addEventListener?.("online", online);
    let failures = 0;
    let refusals = 0;
    this.#listener.onStatus("connecting");
    while (this.#topics.length > 0 && !this.#paused) {
      this.#ending = new AbortController();
      const { signal } = this.#ending;
      let error: Error | undefined;
      try {
        await this.#connect(signal, () => {
          failures = 0;
          refusals = 0;
        });
      } catch (thrown) {
        error = thrown instanceof Error ? thrown : new ConnectionError(String(thrown));
      }
      clearTimeout(this.#renewing);
      if (signal.aborted) continue;
      const status = error instanceof ProblemError ? error.status : 0;
      if ((status === 401 || status === 403) && this.#tokens.getToken && refusals++ === 0) {
        this.#token = undefined;
        continue;
      }
      if (error && isFinal(error)) {
        this.#settle(error);
        continue;
      }
      failures++;
      // The token ended after a stream: there is nothing to wait for.
      if (this.#expired && failures === 1) continue;
      this.#listener.onStatus("reconnecting", error);
      const asked = error instanceof ProblemError ? (error.retryAfterMs ?? 0) : 0;
      await wait(Math.max(asked, backoffMs(failures, this.#settings.backoff)), signal).catch(() => undefined);
    }
    platform.removeEventListener?.("online", online);
    this.#running = false;
    if (this.#topics.length > 0) this.#listener.onStatus("paused");
  }

  async #connect(signal: AbortSignal, onReady: () => void): Promise<void> {
    const topics = this.#topics;
    this.#expired = false;
    const token = this.#token ?? (await this.#getToken(signal));
    if (signal.aborted) return;
    this.#token = token;
    let serverNow = 0;
    await readStream(this.#wire, {
      path: `/realtime?${new URLSearchParams(topics.map((topic) => ["topic", topic]))}`,
      token,
      lastEventId: this.cursor,
      signal,
      onOpen: (now) => (serverNow = now),
      onEvent: (event) => {
        if (event.event === "ready") {
          onReady();
          this.#renewBefore(event.data.expires_at, serverNow);
        }
        if (event.event === "expired") {
          this.#expired = true;
          this.#token = undefined;
        }
        if (event.event === "reset") {
          const topic = String(event.data.topic);
          this.#end([topic], new PicloudError(`the topic ${topic} was closed`));
          return this.#restart();
        }
        if (event.id !== undefined) this.cursor = event.id;
        this.#listener.onEvent(event);
        if (event.event === "ready") this.#listener.onStatus("open");
      },
      onUnreadable: (event, id) => {
        if (event === "ready" || event === "reset") throw new PicloudError(`the server's \`${event}\` cannot be read`);
        // Whatever it was, it is missing; what comes after it is not.
        this.#gap(id);
      },
    });
  }

  /** A token from the page; one that does not come must not keep us from starting anew. */
  async #getToken(signal: AbortSignal): Promise<string | null | undefined> {
    const { getToken } = this.#tokens;
    if (!getToken) return;
    return within(() => getToken(this.#topics), signal, TOKEN_MS, "`getToken` is late");
  }

  /** Come back with a new token shortly before the server would end the stream. */
  #renewBefore(expiresAt: unknown, serverNow: number): void {
    const leftMs = Date.parse(String(expiresAt)) - serverNow;
    if (!this.#tokens.getToken || !(leftMs > 0)) return;
    const inMs = Math.min(leftMs - Math.min(30_000, leftMs / 5), TIMER_MAX_MS);
    this.#renewing = setTimeout(() => void this.#renew(this.#ending.signal), inMs);
  }

  async #renew(signal: AbortSignal): Promise<void> {
    try {
      const token = await this.#getToken(signal);
      if (signal.aborted) return;
      this.#token = token;
      this.#restart();
    } catch {
      // The stream goes on until its token ends; then this is tried again, and told.
    }
  }

  /** Something will not change by trying again: end the topic that the server names, or all. */
  #settle(error: Error): void {
    const { field, body } = error as Partial<ProblemError>;
    if (field === "last_event_id" && this.cursor) {
      // The server does not know the place: all since then is lost.
      this.cursor = undefined;
      return this.#gap();
    }
    const named = this.#topics.filter((topic) => topic === (body as { topic?: unknown } | undefined)?.topic);
    this.#end(named.length > 0 ? named : this.#topics, error);
  }

  /** Tell all topics that something is missing before this place. */
  #gap(id?: string): void {
    this.cursor = id ?? this.cursor;
    for (const topic of this.#topics) this.#listener.onEvent({ event: "gap", id, data: { topic } });
  }

  #end(topics: readonly string[], error: Error): void {
    this.#topics = this.#topics.filter((topic) => !topics.includes(topic));
    this.#listener.onEnd(topics, error);
  }
}

/** Whether trying again would not help. */
function isFinal(error: Error): boolean {
  if (error instanceof ProblemError) return error.status < 500 && ![408, 425, 429].includes(error.status);
  const mayPass = error instanceof ConnectionError || error instanceof TimeoutError;
  return error instanceof PicloudError && !mayPass;
}

function same(some: readonly string[], others: readonly string[]): boolean {
  return some.length === others.length && some.every((topic) => others.includes(topic));
}
