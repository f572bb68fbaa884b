import { expect, test } from "vitest";

import { createClient } from "../src/index.js";
import { until } from "./http.js";
import { Picloud } from "./picloud.js";

const FAST = { baseMs: 20, maxMs: 100 };

test("an async route's execution can be waited for by those who may read it", async () => {
  const server = await Picloud.start();
  await server.route("/later", 'log::info("begun", #{ n: 1 }); sleep(0.3); log::info("done"); 42', {
    dispatch_mode: "async",
  });
  const client = createClient({ baseUrl: server.url });
  const execution = await client.endpoint("/later", { dispatchMode: "async" }).post({ body: {} });
  const lines: string[] = [];
  const outcome = await execution.wait({ token: server.token, onLog: ({ message }) => lines.push(message) });
  expect(outcome).toMatchObject({ id: execution.id, outcome: "answered" });
  expect(lines).toEqual(["begun", "done"]);
  await expect(execution.wait()).rejects.toMatchObject({ status: 401 });
  await expect(execution.wait({ token: server.token, signal: AbortSignal.abort(new Error("no")) })).rejects.toThrow(
    "no",
  );
});

test("a topic is there for those who may, and nobody else", async () => {
  const server = await Picloud.start();
  await server.open("room:*", { auth_mode: "token" });
  await server.open("news");
  await server.route(
    "/rooms/{room}/token",
    '#{ token: pubsub::subscriber_token(["room:" + ctx.request.params.room], 3600) }',
  );
  const client = createClient({ baseUrl: server.url, realtime: { backoff: FAST } });
  const token = client.endpoint<never, { token: string }>("/rooms/{room}/token");
  const getToken = async () => (await token.get({ params: { room: "1" } })).token;
  const heard: unknown[] = [];
  const onMessage = ({ message }: { message: unknown }) => heard.push(message);
  const room = client.subscribe("room:1", { getToken, onMessage });
  const news = client.subscribe("news", { onMessage });
  await until("both are open", () => room.status === "open" && news.status === "open");
  await server.publish("room:1", { text: "hi" });
  await server.publish("news", "new");
  await until("both messages", () => heard.length === 2);
  expect(heard).toContainEqual({ text: "hi" });

  const ends = async (topic: string, how: Parameters<typeof client.subscribe>[1] = {}) => {
    const errors: unknown[] = [];
    const refused = client.subscribe(topic, { ...how, onStatus: (_, error) => errors.push(error) });
    await until("the end", () => refused.status === "closed");
    return errors.at(-1);
  };
  expect(await ends("room:1")).toMatchObject({ status: 401 });
  expect(await ends("room:2", { getToken })).toMatchObject({ status: 403 });
  expect(await ends("internal")).toMatchObject({ status: 404 });
  await server.api("DELETE", "/apps/shop/topics/news");
  await until("the closed topic's end", () => news.status === "closed");
});

test("one topic that is refused leaves the others of its stream", async () => {
  const server = await Picloud.start();
  await server.open("a");
  const client = createClient({ baseUrl: server.url, realtime: { backoff: FAST } });
  const heard: unknown[] = [];
  const a = client.subscribe("a", { onMessage: ({ message }) => heard.push(message) });
  const nobodys = client.subscribe("nobodys");
  await until("the refusal", () => nobodys.status === "closed");
  await until("the other is open", () => a.status === "open");
  await server.publish("a", 1);
  await until("a message", () => heard.length === 1);
});

test("a token that ends is replaced, and nothing is missed", async () => {
  const server = await Picloud.start();
  await server.open("a", { auth_mode: "token" });
  await server.route("/token", '#{ token: pubsub::subscriber_token(["a"], 10) }');
  const client = createClient({ baseUrl: server.url, realtime: { backoff: FAST } });
  const token = client.endpoint<never, { token: string }>("/token");
  let minted = 0;
  const getToken = async () => {
    minted++;
    return (await token.get()).token;
  };
  const heard: unknown[] = [];
  const subscription = client.subscribe("a", { getToken, onMessage: ({ message }) => heard.push(message) });
  await until("open", () => subscription.status === "open");
  let n = 0;
  while (minted < 3) {
    await server.publish("a", n++);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await until("all", () => heard.length === n);
  expect(heard).toEqual(Array.from({ length: n }, (_, i) => i));
});

test("a server that is killed and started again finds its subscribers back, and they miss nothing", async () => {
  const server = await Picloud.start();
  await server.open("a");
  await server.open("b");
  const client = createClient({ baseUrl: server.url, realtime: { backoff: FAST } });
  const heard: unknown[] = [];
  const read: unknown[] = [];
  client.subscribe("a", { onMessage: ({ message }) => heard.push(message) });
  const other = createClient({ baseUrl: server.url, realtime: { backoff: FAST } }).subscribe("a");
  const reading = (async () => {
    for await (const { message } of other) if (read.push(message) === 60) return;
  })();
  await until("open", () => other.status === "open");
  for (let n = 0; n < 60; n++) {
    await server.publish("a", n);
    if (n % 20 === 10) {
      await server.kill();
      await server.launch();
    }
  }
  await reading;
  await until("all", () => heard.length === 60);
  const all = Array.from({ length: 60 }, (_, n) => n);
  expect(heard).toEqual(all);
  expect(read).toEqual(all);
});

test("what was published before can be had, and an ephemeral message only now", async () => {
  const server = await Picloud.start();
  await server.open("a");
  const client = createClient({ baseUrl: server.url, realtime: { backoff: FAST } });
  for (const n of [1, 2, 3]) await server.publish("a", n);
  const heard: unknown[] = [];
  const all = client.subscribe("a", {
    lastEventId: "earliest",
    onMessage: ({ message, seq }) => heard.push([message, seq === undefined]),
  });
  await until("the past", () => heard.length === 3);
  await server.api("POST", "/apps/shop/topics/a/messages", { message: "now", ephemeral: true });
  await until("the present", () => heard.length === 4);
  expect(heard).toEqual([
    [1, false],
    [2, false],
    [3, false],
    ["now", true],
  ]);
  const place = all.lastEventId;
  all.close();
  await server.publish("a", 4);
  const later = client.subscribe<number>("a", { ...(place !== undefined && { lastEventId: place }) });
  for await (const { message } of later) {
    expect(message).toBe(4);
    break;
  }
});
