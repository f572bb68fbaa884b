import { PicloudError } from "./errors.js";
import type { Line, Listener, Status, TopicSource } from "./line.js";
import { platform } from "./platform.js";
import { TOPICS_MAX, type Share } from "./realtime.js";
import { randomKey } from "./send.js";
import type { StreamEvent } from "./stream.js";

/**
 * Share one connection between all tabs of an origin that give the same name; put the user into
 * it where each has tokens of their own. Where the platform has no Web Locks, each tab has a
 * connection of its own.
 */
export function acrossTabs(name: string): Share {
  return (baseUrl, makeLine, listener) =>
    // A sandboxed page has no origin to share anything with.
    platform.BroadcastChannel && platform.navigator?.locks && platform.origin !== "null"
      ? new SharedLine(`picloud:${baseUrl}:${name}`, makeLine, listener)
      : undefined;
}

/** What tabs tell each other. */
type Note =
  | { kind: "hello" }
  | {
      kind: "want";
      tab: string;
      topics: readonly string[];
      paused: boolean;
      cursor: string | undefined;
      status: Status;
      /** The topics that the connection had when it opened last. */
      open: readonly string[];
    }
  | { kind: "event"; event: StreamEvent }
  | { kind: "status"; status: Status; error: string | undefined }
  | { kind: "end"; topics: readonly string[]; error: string };

/** What a tab wants. */
type Want = Extract<Note, { kind: "want" }>;

/**
 * One connection for all tabs: the tab that holds a lock has it, and tells the others what it
 * hears. Each tab knows what all want and where the stream is, so that any can take over.
 */
class SharedLine implements TopicSource {
  cursor: string | undefined;
  readonly #name: string;
  readonly #makeLine: (listener: Listener, lastEventId?: string) => Line;
  readonly #listener: Listener;
  readonly #tab = randomKey();
  readonly #wants = new Map<string, Want>();
  #channel: BroadcastChannel | undefined;
  #topics: readonly string[] = [];
  #paused = false;
  #status: Status = "connecting";
  #open: readonly string[] = [];
  /** Ours to read, while we lead. */
  #line: Line | undefined;
  /** Lets go of our locks. */
  #leave: (() => void) | undefined;

  constructor(name: string, makeLine: (listener: Listener, lastEventId?: string) => Line, listener: Listener) {
    this.#name = name;
    this.#makeLine = makeLine;
    this.#listener = listener;
  }

  want(topics: readonly string[]): void {
    this.#topics = topics;
    if (topics.length > 0 && !this.#leave) void this.#join();
    this.#say();
    if (topics.length === 0) this.#part();
  }

  pause(paused: boolean): void {
    if (this.#paused === paused) return;
    this.#paused = paused;
    this.#say();
  }

  async #join(): Promise<void> {
    const left = new Promise<void>((resolve) => (this.#leave = resolve));
    const leaving = new AbortController();
    void left.then(() => leaving.abort());
    const { locks } = navigator;
    // Held while this tab lives, and before the others hear of it: they learn of its end so.
    await new Promise<void>((held) => {
      void locks.request(this.#name + this.#tab, () => (held(), left));
    });
    if (leaving.signal.aborted) return;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }: MessageEvent<Note>) => this.#hear(data);
    this.#post({ kind: "hello" });
    this.#say();
    const lead = () => {
      this.#line = this.#makeLine(this.#leading(), this.cursor);
      this.#follow();
      return left;
    };
    locks.request(this.#name, { signal: leaving.signal }, lead).catch(() => undefined);
  }

  #part(): void {
    this.#leave?.();
    this.#leave = undefined;
    this.#line?.want([]);
    this.#line = undefined;
    this.#channel?.close();
    this.#channel = undefined;
    this.#wants.clear();
  }

  /** Tell all, ourselves too, what we want and where we are. */
  #say(): void {
    const { cursor } = this;
    const want: Want = {
      kind: "want",
      tab: this.#tab,
      topics: this.#topics,
      paused: this.#paused,
      cursor,
      status: this.#status,
      open: this.#open,
    };
    this.#wants.set(this.#tab, want);
    this.#post(want);
    this.#follow();
  }

  #post(note: Note): void {
    this.#channel?.postMessage(note);
  }

  #hear(note: Note): void {
    if (note.kind === "hello") this.#say();
    if (note.kind === "event") this.#event(note.event);
    if (note.kind === "status")
      this.#changed(note.status, note.error === undefined ? undefined : new PicloudError(note.error));
    if (note.kind === "end") this.#listener.onEnd(note.topics, new PicloudError(note.error));
    if (note.kind !== "want") return;
    if (note.topics.length === 0) this.#wants.delete(note.tab);
    else {
      const isNew = !this.#wants.has(note.tab);
      this.#wants.set(note.tab, note);
      if (isNew) this.#mourn(note.tab);
      if (this.cursor === undefined && note.cursor !== undefined) {
        this.cursor = note.cursor;
        // What the stream said when it opened: a topic of ours that it did not have is not open yet.
        this.#event({ event: "ready", data: { topics: note.open } });
        this.#changed(note.status);
      }
    }
    this.#follow();
  }

  /** Forget a tab when its lock is free: it is gone. */
  #mourn(tab: string): void {
    void navigator.locks.request(this.#name + tab, { mode: "shared" }, () => {
      this.#wants.delete(tab);
      this.#follow();
    });
  }

  #follow(): void {
    if (!this.#line) return;
    const wants = [...this.#wants.values()];
    this.#line.pause(wants.every(({ paused }) => paused));
    const topics = [...new Set(wants.flatMap(({ topics }) => topics))];
    if (topics.length > TOPICS_MAX) {
      const error = new PicloudError(`the tabs together follow more than ${TOPICS_MAX} topics`);
      return this.#ended(topics.slice(TOPICS_MAX), error);
    }
    this.#line.want(topics);
  }

  /** What our line tells us goes to all. */
  #leading(): Listener {
    return {
      onEvent: (event) => {
        this.#post({ kind: "event", event });
        this.#event(event);
      },
      onStatus: (status, error) => {
        this.#post({ kind: "status", status, error: error?.message });
        this.#changed(status, error);
      },
      onEnd: (topics, error) => this.#ended(topics, error),
    };
  }

  #ended(topics: readonly string[], error: Error): void {
    for (const [tab, want] of this.#wants) {
      this.#wants.set(tab, { ...want, topics: want.topics.filter((topic) => !topics.includes(topic)) });
    }
    this.#post({ kind: "end", topics, error: error.message });
    this.#listener.onEnd(topics, error);
    this.#follow();
  }

  #event(event: StreamEvent): void {
    this.cursor = event.id ?? this.cursor;
    if (event.event === "ready") this.#open = event.data.topics as string[];
    this.#listener.onEvent(event);
  }

  #changed(status: Status, error?: Error): void {
    this.#status = status;
    this.#listener.onStatus(status, error);
  }
}
