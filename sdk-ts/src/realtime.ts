import { Line, type GetToken, type Listener, type Status, type TopicSource } from "./line.js";
import { platform } from "./platform.js";
import type { Wire } from "./send.js";
import { refuseReactNative, type StreamEvent } from "./stream.js";
import { Subscription, type Follower, type Host, type SubscribeOptions } from "./subscription.js";
import type { Backoff } from "./wait.js";

/** Makes one connection serve several clients; undefined where the platform cannot. */
export type Share = (
  baseUrl: string,
  makeLine: (listener: Listener, lastEventId?: string) => Line,
  listener: Listener,
) => TopicSource | undefined;

/** How the client follows topics. */
export interface RealtimeOptions {
  /** Gets subscriber tokens, for subscriptions that bring no `getToken` of their own. */
  getToken?: GetToken;
  /** Keep no connection while the page is hidden; what was published meanwhile comes when it is shown. */
  pauseWhenHidden?: boolean;
  /** Share one connection with other tabs: `acrossTabs("name")`. */
  share?: Share;
  /** The pauses before a lost connection is made again; up to 1 s at first, 30 s at most, unless told. */
  backoff?: Partial<Backoff>;
}

const BACKOFF = { baseMs: 1000, maxMs: 30_000 };

/** The server takes no more topics on a stream. */
export const TOPICS_MAX = 50;

/** Subscriptions that share one connection. */
class Group implements Listener {
  readonly followers = new Set<Follower>();
  readonly source: TopicSource;
  status: Status = "connecting";
  /** Whether it began with what is published now, and not at a place of the past. */
  readonly #isLive: boolean;
  readonly #usual: GetToken | undefined;
  /** The topics that its stream had when it opened last: one that came later is not open yet. */
  #open: ReadonlySet<unknown> = new Set();

  constructor(first: Follower, usual: GetToken | undefined, makeSource: (group: Group) => TopicSource) {
    this.#usual = usual;
    this.#isLive = first.cursor === undefined;
    this.source = makeSource(this);
  }

  /** As whoever came last has it now. */
  get getToken(): GetToken | undefined {
    return [...this.followers].at(-1)?.getToken ?? this.#usual;
  }

  topics(): string[] {
    return [...new Set(Array.from(this.followers, ({ topic }) => topic))];
  }

  /** Whether it can bring this one just what it wants. */
  takes({ topic, cursor }: Follower, getToken: GetToken | undefined): boolean {
    const topics = this.topics();
    const isRoom = topics.length < TOPICS_MAX || topics.includes(topic);
    const isThere = cursor === undefined ? this.#isLive : cursor === this.source.cursor;
    return isRoom && isThere && this.getToken === getToken;
  }

  onEvent(event: StreamEvent): void {
    if (event.event === "ready") this.#open = new Set(event.data.topics as unknown[]);
    this.#each((follower) => follower.hear(event));
  }

  onStatus(status: Status, error?: Error): void {
    this.status = status;
    this.#each((follower) => this.tell(follower, error));
  }

  /** Tell a follower how its topic is. */
  tell(follower: Follower, error?: Error): void {
    if (this.status !== "open" || this.#open.has(follower.topic)) follower.changed(this.status, error);
  }

  onEnd(topics: readonly string[], error: Error): void {
    this.#each((follower) => topics.includes(follower.topic) && follower.end(error));
  }

  /** Those of this moment: what they do with it may bring others, or end some. */
  #each(tell: (follower: Follower) => unknown): void {
    [...this.followers].forEach(tell);
  }
}

/** Follows topics, with as few connections as can be. */
export class Realtime implements Host {
  readonly #wire: Wire;
  readonly #options: RealtimeOptions;
  readonly #groups = new Set<Group>();

  constructor(wire: Wire, options: RealtimeOptions = {}) {
    this.#wire = wire;
    this.#options = options;
    if (!options.pauseWhenHidden) return;
    // For as long as the page lives, as its client does.
    platform.document?.addEventListener("visibilitychange", () => {
      for (const group of this.#groups) group.source.pause(this.#isHidden());
    });
  }

  subscribe<T>(topic: string, options: SubscribeOptions<T>): Subscription<T> {
    refuseReactNative(this.#wire);
    return new Subscription<T>(this, topic, options);
  }

  attach(follower: Follower): void {
    const getToken = follower.getToken ?? this.#options.getToken;
    let group = [...this.#groups].find((some) => some.takes(follower, getToken));
    if (!group) {
      group = new Group(follower, this.#options.getToken, (made) => this.#source(follower, getToken, made));
      this.#groups.add(group);
    }
    const isThere = group.topics().includes(follower.topic);
    group.followers.add(follower);
    this.#follow(group);
    if (isThere) group.tell(follower);
    const { cursor } = group.source;
    // It joins here; messages before this place are not for it.
    if (follower.cursor === undefined && cursor !== undefined) follower.cursor = cursor;
  }

  detach(follower: Follower): void {
    for (const group of this.#groups) {
      if (!group.followers.delete(follower)) continue;
      if (group.followers.size === 0) this.#groups.delete(group);
      this.#follow(group);
    }
  }

  #follow(group: Group): void {
    group.source.pause(this.#isHidden());
    group.source.want(group.topics());
  }

  #source({ cursor }: Follower, getToken: GetToken | undefined, group: Group): TopicSource {
    const { share, backoff } = this.#options;
    const make = (heard: Listener, lastEventId = cursor) =>
      new Line(this.#wire, group, { backoff: { ...BACKOFF, ...backoff }, lastEventId }, heard);
    // What begins elsewhere, has tokens of its own, or found no room is not shared.
    const isFirst = [...this.#groups].every(({ source }) => source instanceof Line);
    const isCommon = getToken === this.#options.getToken && cursor === undefined;
    const shared = isCommon && isFirst ? share?.(this.#wire.baseUrl, make, group) : undefined;
    return shared ?? make(group);
  }

  #isHidden(): boolean {
    return this.#options.pauseWhenHidden === true && platform.document?.visibilityState === "hidden";
  }
}
