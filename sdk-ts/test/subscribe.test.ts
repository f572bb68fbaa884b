import { afterEach, expect, test, vi } from "vitest";

import { createClient, type Client, type ClientOptions, type Message, type Status } from "../src/index.js";
import { problem, until } from "./http.js";
import { Journal } from "./journal.js";

afterEach(() => vi.unstubAllGlobals());

const FAST = { baseMs: 5, maxMs: 20 };

function clientOf(journal: Journal, realtime: ClientOptions["realtime"] = {}): Client {
  return createClient({ baseUrl: journal.url, realtime: { backoff: FAST, ...realtime } });
}

/** Subscribe and write down what is heard. */
function listen(client: Client, topic: string, options: Parameters<Client["subscribe"]>[1] = {}) {
  const heard: unknown[] = [];
  const statuses: Status[] = [];
  const errors: Error[] = [];
  const gaps: string[] = [];
  const subscription = client.subscribe(topic, {
    onMessage: ({ message }) => heard.push(message),
    onGap: () => gaps.push(topic),
    onStatus: (status, error) => {
      statuses.push(status);
      if (error) errors.push(error);
    },
    ...options,
  });
  return { subscription, heard, statuses, errors, gaps };
}

const isOpen =
  ({ subscription }: ReturnType<typeof listen>) =>
  () =>
    subscription.status === "open";

test("messages come as they are published, with what is known of them", async () => {
  const journal = await Journal.start();
  const received: Message[] = [];
  const one = listen(clientOf(journal), "a", { onMessage: (message) => received.push(message) });
  await until("open", isOpen(one));
  journal.publish("a", { n: 1 });
  await until("a message", () => received.length === 1);
  expect(received[0]).toEqual({
    message: { n: 1 },
    topic: "a",
    id: "m1",
    seq: 1,
    publishedAt: "2026-11-21T11:00:00Z",
  });
  expect(one.subscription.lastEventId).toBe("p1");
  one.subscription.close();
  expect(one.statuses).toEqual(["open", "closed"]);
  await until("the stream's end", () => journal.streams.size === 0);
});

test("topics that are followed at the same moment share one connection, later ones join it", async () => {
  const journal = await Journal.start();
  const client = clientOf(journal);
  const [a, b] = [listen(client, "a"), listen(client, "b")];
  await until("open", isOpen(b));
  expect(journal.asked).toBe(1);
  const c = listen(client, "c");
  const again = listen(client, "a");
  await until("all on one stream", () => [...journal.streams].some(({ topics }) => topics.length === 3));
  await until("one stream", () => journal.streams.size === 1);
  expect(journal.asked).toBe(2);
  for (const topic of ["a", "b", "c"]) journal.publish(topic, topic);
  await until("the last", () => c.heard.length === 1);
  expect([a, b, c, again].map(({ heard }) => heard)).toEqual([["a"], ["b"], ["c"], ["a"]]);
  a.subscription.close();
  b.subscription.close();
  await until("fewer topics", () => [...journal.streams].some(({ topics }) => topics.length === 2));
});

test("a second subscription to a topic is open at once, and closing one leaves the other", async () => {
  const journal = await Journal.start();
  const client = clientOf(journal);
  const first = listen(client, "a");
  await until("open", isOpen(first));
  const second = listen(client, "a");
  expect(second.subscription.status).toBe("open");
  first.subscription.close();
  journal.publish("a", 1);
  await until("a message", () => second.heard.length === 1);
  expect(first.heard).toEqual([]);
  expect(journal.asked).toBe(1);
});

test("a topic is open once its stream has it, and not while the one of others is", async () => {
  const journal = await Journal.start();
  const client = clientOf(journal);
  const a = listen(client, "a");
  await until("open", isOpen(a));
  const b = listen(client, "b");
  // Somebody asked for it a moment ago, and the stream that has it is not there yet.
  const again = listen(client, "b");
  expect([a, b, again].map(({ subscription }) => subscription.status)).toEqual(["open", "connecting", "connecting"]);
  await until("both open", () => isOpen(b)() && isOpen(again)());
  journal.publish("b", 1);
  await until("a message", () => b.heard.length === 1 && again.heard.length === 1);
});

test("a journal whose numbers are lower after a gap is heard", async () => {
  const journal = await Journal.start();
  const one = listen(clientOf(journal), "a");
  await until("open", isOpen(one));
  for (let n = 1; n <= 5; n++) journal.publish("a", n);
  await until("all", () => one.heard.length === 5);
  journal.restore("a", 1);
  journal.cut();
  await until("a gap", () => one.gaps.length === 1);
  journal.publish("a", "after");
  await until("what came after", () => one.heard.length === 6);
});

test("a `getToken` that never answers does not keep new topics out", async () => {
  const journal = await Journal.start();
  let calls = 0;
  const getToken = () => (++calls === 1 ? new Promise<string>(() => undefined) : "t");
  const client = clientOf(journal, { getToken });
  const a = listen(client, "a");
  await until("the token is asked for", () => calls === 1);
  const b = listen(client, "b");
  await until("open", () => isOpen(a)() && isOpen(b)());
});

test("more topics than a stream takes need a second one", async () => {
  const journal = await Journal.start();
  const client = clientOf(journal);
  const all = Array.from({ length: 51 }, (_, n) => listen(client, `t${n}`));
  await until("all open", () => all.every((one) => isOpen(one)()));
  expect([...journal.streams].map(({ topics }) => topics.length).sort()).toEqual([1, 50]);
  journal.publish("t50", 1);
  await until("a message", () => all[50]?.heard.length === 1);
});

test("what was missed is replayed, in order, nothing twice, wherever the connection was lost", async () => {
  const journal = await Journal.start();
  const one = listen(clientOf(journal), "a");
  await until("open", isOpen(one));
  // Before the first message: the place is that of `ready`.
  journal.cut();
  journal.publish("a", 1);
  await until("the first", () => one.heard.length === 1);
  for (let n = 2; n <= 50; n++) {
    journal.publish("a", n);
    if (n % 7 === 0) journal.cut();
    if (n % 10 === 0) await until("caught up", () => one.heard.length === n);
  }
  await until("the last", () => one.heard.length >= 50);
  expect(one.heard).toEqual(Array.from({ length: 50 }, (_, n) => n + 1));
  expect(one.statuses).toContain("reconnecting");
});

test("a server that repeats itself is not believed", async () => {
  const journal = await Journal.start();
  const one = listen(clientOf(journal), "a", { lastEventId: "earliest" });
  await until("open", isOpen(one));
  for (let n = 1; n <= 5; n++) journal.publish("a", n);
  await until("all", () => one.heard.length === 5);
  const twice = listen(clientOf(journal), "a", { lastEventId: "p2" });
  await until("the rest", () => twice.heard.length === 3);
  for (const { response } of journal.streams) {
    response.write(`event: message\nid: p3\ndata: {"topic":"a","id":"m3","seq":3,"message":3}\n\n`);
  }
  journal.publish("a", 6);
  await until("the newest", () => twice.heard.length >= 4);
  expect(twice.heard).toEqual([3, 4, 5, 6]);
  expect(one.heard).toEqual([1, 2, 3, 4, 5, 6]);
});

test("an ephemeral message comes, and moves nothing", async () => {
  const journal = await Journal.start();
  const one = listen(clientOf(journal), "a");
  await until("open", isOpen(one));
  journal.publish("a", 1);
  journal.publishEphemeral("a", "now");
  await until("both", () => one.heard.length === 2);
  expect(one.subscription.lastEventId).toBe("p1");
});

test("a gap is told, and what is still there follows", async () => {
  const journal = await Journal.start();
  for (let n = 1; n <= 5; n++) journal.publish("a", n);
  journal.oldest = 3;
  const one = listen(clientOf(journal), "a", { lastEventId: "p1" });
  await until("the rest", () => one.heard.length === 2);
  expect(one.gaps).toEqual(["a"]);
  expect(one.heard).toEqual([4, 5]);
});

test("a place that the server does not know is a gap, and the stream goes on from now", async () => {
  const journal = await Journal.start();
  const one = listen(clientOf(journal), "a", { lastEventId: "nonsense" });
  await until("open", isOpen(one));
  expect(one.gaps).toEqual(["a"]);
  journal.publish("a", 1);
  await until("a message", () => one.heard.length === 1);
});

test.each(['{"topic":"a', "", "null", "7", '"text"'])(
  "a message that cannot be read is a gap, and the stream goes on after it: %s",
  async (data) => {
    const journal = await Journal.start();
    const client = clientOf(journal);
    const [a, b] = [listen(client, "a"), listen(client, "b")];
    await until("open", () => isOpen(a)() && isOpen(b)());
    journal.publish("a", 1);
    await until("a message", () => a.heard.length === 1);
    journal.write(`event: message\nid: p2\ndata: ${data}\n\n`);
    await until("the gap", () => a.gaps.length + b.gaps.length === 2);
    expect(a.subscription.lastEventId).toBe("p2");
    journal.publish("a", 2);
    await until("the next", () => a.heard.length === 2);
    // Nothing was asked for again, and both topics of the stream were told.
    expect([journal.asked, a.gaps, b.gaps]).toEqual([1, ["a"], ["b"]]);
  },
);

test.each(["ready", "reset"])("a server whose `%s` cannot be read is not asked for ever", async (event) => {
  const journal = await Journal.start();
  const one = listen(clientOf(journal), "a");
  await until("open", isOpen(one));
  journal.write(`event: ${event}\ndata: nonsense\n\n`);
  await until("the end", () => one.subscription.status === "closed");
  expect(one.errors.at(-1)?.message).toContain(`\`${event}\` cannot be read`);
  expect(journal.asked).toBe(1);
});

test("a topic that is closed ends its subscriptions, and no other", async () => {
  const journal = await Journal.start();
  const client = clientOf(journal);
  const [a, b] = [listen(client, "a"), listen(client, "b")];
  await until("open", isOpen(b));
  journal.end("reset", { topic: "a" });
  await until("the end", () => a.subscription.status === "closed");
  expect(a.errors.at(-1)?.message).toContain("the topic a was closed");
  journal.publish("b", 1);
  await until("a message", () => b.heard.length === 1);
});

test("a topic that is refused ends with the problem; where it is named, the others stay", async () => {
  const journal = await Journal.start();
  journal.refuse = (_, topics) =>
    topics.includes("secret") ? { status: 404, body: problem(404, "not_found", { topic: "secret" }) } : undefined;
  const client = clientOf(journal);
  const [secret, b] = [listen(client, "secret"), listen(client, "b")];
  await until("the others", isOpen(b));
  expect(secret.subscription.status).toBe("closed");
  expect(secret.errors[0]).toMatchObject({ name: "ProblemError", status: 404 });
});

test.each([undefined, "no", problem(404, "not_found", { topic: "another" })])(
  "a refusal that names none of the topics ends all: %o",
  async (body) => {
    const journal = await Journal.start();
    journal.refuse = () => ({ status: 404, body });
    const client = clientOf(journal);
    const both = [listen(client, "a"), listen(client, "b")];
    await until("the end", () => both.every(({ subscription }) => subscription.status === "closed"));
    expect(journal.asked).toBe(1);
  },
);

test("a server that is busy, or away, is asked again", async () => {
  const journal = await Journal.start();
  let refusals = 0;
  journal.refuse = () => {
    refusals++;
    if (refusals === 1) return { status: 429, body: problem(429, "too_many_streams"), headers: { "retry-after": "1" } };
    return refusals < 4 ? { status: 503, body: problem(503, "unavailable") } : undefined;
  };
  const begun = Date.now();
  const one = listen(clientOf(journal), "a");
  await until("open", isOpen(one));
  expect(Date.now() - begun).toBeGreaterThanOrEqual(1000);
  expect(one.errors.map((error) => (error as { status?: number }).status)).toEqual([429, 503, 503]);
  expect(one.statuses).toEqual(["reconnecting", "reconnecting", "reconnecting", "open"]);
});

test("a token is got for the topics, and got anew when it is refused, once", async () => {
  const journal = await Journal.start();
  const good = new Set(["Bearer t2"]);
  journal.refuse = ({ headers }) =>
    good.has(String(headers.authorization)) ? undefined : { status: 401, body: problem(401, "unauthorized") };
  let minted = 0;
  const getToken = vi.fn(() => `t${++minted}`);
  const one = listen(clientOf(journal, { getToken }), "a");
  await until("open", isOpen(one));
  expect(getToken).toHaveBeenCalledWith(["a"]);
  expect(minted).toBe(2);
  const never = listen(clientOf(journal, { getToken: () => "bad" }), "a");
  await until("the end", () => never.subscription.status === "closed");
  expect(never.errors.at(-1)).toMatchObject({ status: 401 });
});

test("a token that ended is got anew, and nothing is missed", async () => {
  const journal = await Journal.start();
  let minted = 0;
  const one = listen(clientOf(journal), "a", { getToken: () => Promise.resolve(`t${++minted}`) });
  await until("open", isOpen(one));
  journal.end("expired");
  journal.publish("a", 1);
  await until("a message", () => one.heard.length === 1);
  expect(minted).toBe(2);
  expect(one.statuses).toEqual(["open"]);
  expect(journal.got.at(-1)?.headers.authorization).toBe("Bearer t2");
});

test("a token is renewed before it ends", async () => {
  const journal = await Journal.start();
  journal.expiresAt = ({ headers }) =>
    new Date(Date.now() + (headers.authorization === "Bearer t1" ? 1500 : 60_000)).toISOString();
  let minted = 0;
  const one = listen(clientOf(journal), "a", { getToken: () => `t${++minted}` });
  await until("open", isOpen(one));
  await until("a new token", () => journal.asked === 2);
  journal.publish("a", 1);
  await until("a message", () => one.heard.length === 1);
  expect(journal.got.map(({ headers }) => headers.authorization)).toEqual(["Bearer t1", "Bearer t2"]);
});

test("new topics need a new token", async () => {
  const journal = await Journal.start();
  const getToken = vi.fn((topics: readonly string[]) => topics.join("+"));
  const client = clientOf(journal, { getToken });
  const a = listen(client, "a");
  await until("open", isOpen(a));
  const b = listen(client, "b");
  await until("open", isOpen(b));
  expect(journal.got.map(({ headers }) => headers.authorization)).toEqual(["Bearer a", "Bearer a+b"]);
});

test("a `getToken` that fails is told and tried again; one that is refused is the end", async () => {
  const journal = await Journal.start();
  let calls = 0;
  const getToken = () => (++calls < 3 ? Promise.reject(new Error("offline")) : "t");
  const one = listen(clientOf(journal, { getToken }), "a");
  await until("open", isOpen(one));
  expect(one.errors.map(({ message }) => message)).toEqual(["offline", "offline"]);
  journal.refuse = ({ url }) => (url === "/token" ? { status: 403, body: problem(403, "forbidden") } : undefined);
  const client = clientOf(journal);
  const token = client.endpoint<never, string>("/token");
  const refused = listen(client, "a", { getToken: () => token.get() });
  await until("the end", () => refused.subscription.status === "closed");
});

test("a subscription from a place of the past has a stream of its own", async () => {
  const journal = await Journal.start();
  for (let n = 1; n <= 3; n++) journal.publish("a", n);
  const client = clientOf(journal);
  const live = listen(client, "a");
  const past = listen(client, "a", { lastEventId: "p1" });
  await until("the past", () => past.heard.length === 2);
  journal.publish("a", 4);
  await until("the present", () => live.heard.length === 1 && past.heard.length === 3);
  expect([live.heard, past.heard]).toEqual([[4], [2, 3, 4]]);
});

test("`for await` reads one by one, and leaving it closes the subscription", async () => {
  const journal = await Journal.start();
  const subscription = clientOf(journal).subscribe<number>("a", { lastEventId: "earliest" });
  for (let n = 1; n <= 3; n++) journal.publish("a", n);
  const read: number[] = [];
  for await (const { message } of subscription) {
    read.push(message);
    if (message === 3) break;
  }
  expect(read).toEqual([1, 2, 3]);
  expect(subscription.status).toBe("closed");
  expect(subscription.lastEventId).toBe("p3");
});

test("a reader that is slow holds no more than its buffer, delays nobody, and misses nothing", async () => {
  const journal = await Journal.start();
  const client = clientOf(journal);
  const fast = listen(client, "a");
  const slow = client.subscribe<number>("a", { bufferMax: 10 });
  await until("open", () => slow.status === "open");
  for (let n = 1; n <= 100; n++) journal.publish("a", n);
  await until("the fast one has all", () => fast.heard.length === 100);
  expect(slow.status).toBe("paused");
  const read: number[] = [];
  for await (const { message } of slow) {
    read.push(message);
    expect(slow.lastEventId).toBe(`p${message}`);
    if (message === 60) journal.publish("a", 101);
    if (message === 101) break;
  }
  expect(read).toEqual(Array.from({ length: 101 }, (_, n) => n + 1));
});

test("`for await` throws what ended the subscription, after what came before", async () => {
  const journal = await Journal.start();
  const subscription = clientOf(journal).subscribe<number>("a");
  await until("open", () => subscription.status === "open");
  journal.publish("a", 1);
  journal.end("reset", { topic: "a" });
  const read: number[] = [];
  await expect(async () => {
    for await (const { message } of subscription) read.push(message);
  }).rejects.toThrow("the topic a was closed");
  expect(read).toEqual([1]);
});

test("an abort closes a subscription, and ends its reader", async () => {
  const journal = await Journal.start();
  const ending = new AbortController();
  const subscription = clientOf(journal).subscribe("a", { signal: ending.signal });
  await until("open", () => subscription.status === "open");
  const read = (async () => {
    for await (const { message } of subscription) expect.unreachable(String(message));
  })();
  ending.abort();
  await read;
  expect(subscription.status).toBe("closed");
  expect(clientOf(journal).subscribe("a", { signal: AbortSignal.abort() }).status).toBe("closed");
});

test("a mistake in the page's own code is reported, and ends no stream", async () => {
  const journal = await Journal.start();
  const reported: unknown[] = [];
  const listeners = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => reported.push(error.message));
  try {
    const heard: unknown[] = [];
    const onMessage = ({ message }: Message) => {
      heard.push(message);
      throw new Error("a mistake");
    };
    const one = listen(clientOf(journal), "a", { onMessage });
    await until("open", isOpen(one));
    journal.publish("a", 1);
    journal.publish("a", 2);
    await until("both", () => heard.length === 2 && reported.length === 2);
    expect(one.subscription.status).toBe("open");
  } finally {
    process.removeAllListeners("uncaughtException");
    for (const listener of listeners) process.on("uncaughtException", listener);
  }
});

test("a connection that fell silent is made again", async () => {
  const journal = await Journal.start();
  const { setTimeout } = globalThis;
  const sooner = (run: () => void, ms?: number) => setTimeout(run, ms === 45_000 ? 300 : ms);
  vi.stubGlobal("setTimeout", sooner);
  const one = listen(clientOf(journal), "a");
  await until("open", isOpen(one));
  const begun = Date.now();
  while (Date.now() - begun < 500) {
    for (const { response } of journal.streams) response.write(": still here\n");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  expect(journal.asked).toBe(1);
  await until("another connection", () => journal.asked === 2);
  expect(one.errors[0]?.message).toBe("the stream fell silent");
});

test("no connection is kept while the page is hidden, where that was asked for", async () => {
  const journal = await Journal.start();
  const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  vi.stubGlobal("document", document);
  const show = (state: string) => {
    document.visibilityState = state;
    document.dispatchEvent(new Event("visibilitychange"));
  };
  const one = listen(clientOf(journal, { pauseWhenHidden: true }), "a");
  const always = listen(clientOf(journal), "a");
  await until("open", () => isOpen(one)() && isOpen(always)());
  show("hidden");
  await until("no stream", () => journal.streams.size === 1);
  expect(one.subscription.status).toBe("paused");
  journal.publish("a", 1);
  await until("the other has it", () => always.heard.length === 1);
  expect(one.heard).toEqual([]);
  show("visible");
  await until("what was missed", () => one.heard.length === 1);
});

test("React Native is told what it needs", async () => {
  const journal = await Journal.start();
  vi.stubGlobal("navigator", { product: "ReactNative" });
  expect(() => clientOf(journal).subscribe("a")).toThrow("expo/fetch");
  const streaming: typeof fetch = (...args) => fetch(...args);
  const client = createClient({ baseUrl: journal.url, fetch: streaming });
  await until("open", isOpen(listen(client, "a")));
});
