import { get } from "svelte/store";
import { expect, test } from "vitest";

import { createClient } from "../src/index.js";
import { endpointStore, topicStore } from "../src/svelte.js";
import { json, serve, until } from "./http.js";
import { Journal } from "./journal.js";

test("a topic's store follows while somebody uses it, and goes on where it stopped", async () => {
  const journal = await Journal.start();
  const client = createClient({ baseUrl: journal.url });
  const store = topicStore<number>(client, "a");
  const seen = () => get(store).messages.map(({ message }) => message);
  let stop = store.subscribe(() => undefined);
  await until("open", () => get(store).status === "open");
  journal.publish("a", 1);
  await until("a message", () => seen().length === 1);
  stop();
  await until("no stream", () => journal.streams.size === 0);
  journal.publish("a", 2);
  stop = store.subscribe(() => undefined);
  await until("what was missed", () => seen().length === 2);
  expect(seen()).toEqual([1, 2]);
  stop();
});

test("an answer's store calls when somebody uses it, and again when asked", async () => {
  let count = 0;
  const { url } = await serve((_, response) => json(response, 200, ++count));
  const store = endpointStore(createClient({ baseUrl: url }).endpoint<never, number>("/count"));
  expect(count).toBe(0);
  const states: unknown[] = [];
  const stop = store.subscribe(({ data, isLoading }) => states.push([data, isLoading]));
  await until("an answer", () => get(store).data === 1);
  store.reload();
  await until("another", () => get(store).data === 2);
  stop();
  expect(states.at(0)).toEqual([undefined, true]);
  expect(states.at(-1)).toEqual([2, false]);
});
