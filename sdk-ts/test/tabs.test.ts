import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { acrossTabs, createClient, type Status } from "../src/index.js";
import { problem, until } from "./http.js";
import { Journal } from "./journal.js";
import { Locks } from "./locks.js";

beforeEach(() => vi.stubGlobal("navigator", { locks: new Locks() }));
afterEach(() => vi.unstubAllGlobals());

let names = 0;

/** Clients that share a connection, as tabs of one origin do. */
function tabsOf(journal: Journal) {
  const share = acrossTabs(`test-${++names}`);
  const open = () => createClient({ baseUrl: journal.url, realtime: { share, backoff: { baseMs: 5, maxMs: 20 } } });
  return (topic: string) => {
    const heard: unknown[] = [];
    const statuses: Status[] = [];
    const client = open();
    /** Whether the connection had the topic whenever it was told to be open. */
    const hadTopic: boolean[] = [];
    const onStatus = (status: Status) => {
      statuses.push(status);
      if (status === "open") hadTopic.push([...journal.streams].some(({ topics }) => topics.includes(topic)));
    };
    const subscription = client.subscribe(topic, { onMessage: ({ message }) => heard.push(message), onStatus });
    return { client, hadTopic, heard, statuses, subscription };
  };
}

test("tabs share one connection, each with its own topics", async () => {
  const journal = await Journal.start();
  const tab = tabsOf(journal);
  const one = tab("a");
  await until("the first is open", () => one.subscription.status === "open");
  const others = [tab("a"), tab("b")];
  await until("one stream with both", () => [...journal.streams].some(({ topics }) => topics.length === 2));
  await until("all are open", () => others.every(({ subscription }) => subscription.status === "open"));
  await until("one stream", () => journal.streams.size === 1);
  journal.publish("a", 1);
  journal.publish("b", 2);
  await until("all heard", () => [one, ...others].every(({ heard }) => heard.length === 1));
  expect([one, ...others].map(({ heard }) => heard)).toEqual([[1], [1], [2]]);
  for (const { subscription } of [one, ...others]) subscription.close();
  await until("no stream", () => journal.streams.size === 0);
});

test("a tab is told that its topic is open once the connection has it", async () => {
  const journal = await Journal.start();
  const tab = tabsOf(journal);
  const one = tab("a");
  await until("the first is open", () => one.subscription.status === "open");
  const others = [tab("b"), tab("a")];
  await until("all are open", () => others.every(({ subscription }) => subscription.status === "open"));
  expect([one, ...others].flatMap(({ hadTopic }) => hadTopic).every(Boolean)).toBe(true);
});

test("when the tab that has the connection goes, another takes over, and nothing is missed", async () => {
  const journal = await Journal.start();
  const tab = tabsOf(journal);
  const leader = tab("a");
  await until("open", () => leader.subscription.status === "open");
  const followers = [tab("a"), tab("b")];
  await until("both follow", () => [...journal.streams].some(({ topics }) => topics.length === 2));
  await until("open", () => followers.every(({ subscription }) => subscription.status === "open"));
  const sent: Record<string, number[]> = { a: [], b: [] };
  for (let n = 1; n <= 60; n++) {
    const topic = n % 2 ? "a" : "b";
    sent[topic]?.push(n);
    journal.publish(topic, n);
    if (n === 20) leader.subscription.close();
    if (n % 10 === 0) await new Promise(setImmediate);
  }
  await until("all heard", () => followers.every(({ heard }) => heard.length >= 30));
  expect(followers.map(({ heard }) => heard)).toEqual([sent.a, sent.b]);
});

test("a topic that is refused ends in its tab, and no other", async () => {
  const journal = await Journal.start();
  journal.refuse = (_, topics) =>
    topics.includes("secret") ? { status: 404, body: problem(404, "not_found", { topic: "secret" }) } : undefined;
  const tab = tabsOf(journal);
  const leader = tab("a");
  await until("open", () => leader.subscription.status === "open");
  const secret = tab("secret");
  await until("the end", () => secret.subscription.status === "closed");
  journal.publish("a", 1);
  await until("a message", () => leader.heard.length === 1);
});

test("a subscription from a place of the past is not shared", async () => {
  const journal = await Journal.start();
  journal.publish("a", 1);
  const tab = tabsOf(journal);
  const one = tab("a");
  await until("open", () => one.subscription.status === "open");
  const past: unknown[] = [];
  one.client.subscribe("a", { lastEventId: "earliest", onMessage: ({ message }) => past.push(message) });
  await until("the past", () => past.length === 1);
  expect(one.heard).toEqual([]);
  expect(journal.streams.size).toBe(2);
});

test("without Web Locks each tab has a connection of its own", async () => {
  vi.stubGlobal("navigator", {});
  const journal = await Journal.start();
  const tab = tabsOf(journal);
  const both = [tab("a"), tab("a")];
  await until("two streams", () => journal.streams.size === 2);
  journal.publish("a", 1);
  await until("both heard", () => both.every(({ heard }) => heard.length === 1));
});
