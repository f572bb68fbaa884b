import { PicloudError } from "./errors.js";
import type { GetToken, Status } from "./line.js";
import type { StreamEvent } from "./stream.js";

/** A message of a topic. */
export interface Message<T = unknown> {
  /** What was published. */
  readonly message: T;
  /** The topic. */
  readonly topic: string;
  /** The message's own id, the same wherever it arrives. */
  readonly id: string;
  /** Grows with each message of the topic; undefined for an ephemeral one. */
  readonly seq: number | undefined;
  /** When it was published, RFC 3339. */
  readonly publishedAt: string;
}

/** How to follow a topic. */
export interface SubscribeOptions<T = unknown> {
  /** Takes each message. Without it, read the subscription with `for await`. */
  onMessage?: (message: Message<T>) => void;
  /** Messages are missing here and cannot be had any more: fetch your state anew. */
  onGap?: () => void;
  /** How the subscription is; with what went wrong, if something did. `closed` is the end. */
  onStatus?: (status: Status, error?: Error) => void;
  /** Gets a subscriber token, when the topic needs one; the client's own unless told. */
  getToken?: GetToken | undefined;
  /** Where to begin: the `lastEventId` of an earlier subscription, or `earliest`. Now, unless told. */
  lastEventId?: string;
  /** Closes the subscription. */
  signal?: AbortSignal;
  /** How many messages may wait for `for await`; 1,000 unless told. Past that the stream pauses, and nothing is lost. */
  bufferMax?: number;
}

/** A subscription, as whoever reads the streams sees it. */
export interface Follower {
  readonly topic: string;
  readonly getToken: GetToken | undefined;
  /** The place to go on from. */
  cursor: string | undefined;
  /** An event of its stream arrived. */
  hear(event: StreamEvent): void;
  /** Its stream is in another state. */
  changed(status: Status, error?: Error): void;
  /** It is over. */
  end(error?: Error): void;
}

/** What a subscription needs of whoever reads the streams. */
export interface Host {
  /** Bring it messages. */
  attach(follower: Follower): void;
  /** Bring it no more messages. */
  detach(follower: Follower): void;
}

/** A topic that is followed. */
export class Subscription<T = unknown> implements AsyncIterable<Message<T>>, Follower {
  /** The topic. */
  readonly topic: string;
  /** @internal */
  cursor: string | undefined;
  readonly #options: SubscribeOptions<T>;
  readonly #host: Host;
  #status: Status = "connecting";
  #error: Error | undefined;
  #seq = 0;
  /** The place after the last message that was read. */
  #read: string | undefined;
  readonly #buffer: { message: Message<T>; cursor: string | undefined }[] = [];
  /** Wakes the reader that waits for a message. */
  #wake: (() => void) | undefined;
  readonly #bufferMax: number;
  readonly #onAbort = () => this.close();

  /** @internal */
  constructor(host: Host, topic: string, options: SubscribeOptions<T>) {
    this.topic = topic;
    this.#options = options;
    this.cursor = this.#read = options.lastEventId;
    this.#bufferMax = Math.max(1, options.bufferMax ?? 1000);
    this.#host = host;
    options.signal?.addEventListener("abort", this.#onAbort);
    if (options.signal?.aborted) this.#status = "closed";
    else host.attach(this);
  }

  /** As it is now: a page may have another with each render. @internal */
  get getToken(): GetToken | undefined {
    return this.#options.getToken;
  }

  /** How it is. */
  get status(): Status {
    return this.#status;
  }

  /** The place after the last message that was handled: keep it, to go on from here another time. */
  get lastEventId(): string | undefined {
    return this.#buffer.length > 0 ? this.#read : this.cursor;
  }

  /** Stop. What waits for `for await` can still be read. */
  close(): void {
    this.end();
  }

  /** @internal */
  hear({ event, id, data }: StreamEvent): void {
    if (this.#status === "closed" || this.#status === "paused") return;
    if (event === "gap" && data.topic === this.topic) {
      // What follows may be of another journal, whose numbers are lower: of a restored backup say.
      this.#seq = 0;
      call(this.#options.onGap);
    }
    if (event === "message" && data.topic === this.topic) this.#take(data, id);
    // A place in the stream is one in each of its topics.
    else if (id !== undefined) this.#move(id);
  }

  #take(data: StreamEvent["data"], id: string | undefined): void {
    const seq = data.seq as number | undefined;
    if (seq !== undefined) {
      // Seen already, before the connection was lost.
      if (seq <= this.#seq) return;
      this.#seq = seq;
    }
    const message = {
      message: data.message as T,
      topic: this.topic,
      id: String(data.id),
      seq,
      publishedAt: String(data.published_at),
    };
    const { onMessage } = this.#options;
    if (onMessage) {
      call(() => onMessage(message));
      if (id !== undefined) this.#move(id);
      return;
    }
    this.#buffer.push({ message, cursor: id });
    this.cursor = id ?? this.cursor;
    this.#wake?.();
    if (this.#buffer.length >= this.#bufferMax && this.#status !== "closed") {
      this.#host.detach(this);
      this.changed("paused");
    }
  }

  #move(id: string): void {
    if (this.#buffer.length === 0) this.#read = id;
    this.cursor = id;
  }

  /** @internal */
  changed(status: Status, error?: Error): void {
    if (this.#status === "closed" || (this.#status === status && !error)) return;
    this.#status = status;
    const { onStatus } = this.#options;
    call(() => onStatus?.(status, error));
  }

  /** @internal */
  end(error?: Error): void {
    if (this.#status === "closed") return;
    this.#options.signal?.removeEventListener("abort", this.#onAbort);
    this.#host.detach(this);
    this.#error = error;
    this.changed("closed", error);
    this.#wake?.();
  }

  /** Read the messages one by one. Ends when the subscription is closed, and throws when it failed. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Message<T>, void, undefined> {
    if (this.#options.onMessage) throw new PicloudError("`onMessage` takes the messages already");
    try {
      for (;;) {
        const next = this.#buffer.shift();
        if (next) {
          this.#read = next.cursor ?? this.#read;
          if (this.#status === "paused" && this.#buffer.length <= this.#bufferMax / 2) {
            this.changed("connecting");
            this.#host.attach(this);
          }
          yield next.message;
        } else if (this.#status === "closed") {
          if (this.#error) throw this.#error;
          return;
        } else {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
      }
    } finally {
      this.close();
    }
  }
}

/** Call what the page gave us: its mistakes are reported, and end nothing of ours. */
function call(callback: (() => void) | undefined): void {
  try {
    callback?.();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
