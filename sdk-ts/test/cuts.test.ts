import { expect, test } from "vitest";

import { createClient } from "../src/index.js";
import { Cutter } from "./cutter.js";
import { until } from "./http.js";
import { Journal } from "./journal.js";
import { Picloud } from "./picloud.js";

const CUTS = 1000;

/** Follow two topics through a proxy that cuts, while messages are published, and compare. */
async function survive(url: () => string, publish: (topic: string, n: number) => unknown): Promise<void> {
  const cutter = await Cutter.start(url, CUTS, 1200);
  const client = createClient({ baseUrl: cutter.url, realtime: { backoff: { baseMs: 2, maxMs: 10 } } });
  const heard: Record<string, unknown[]> = { a: [], b: [] };
  const subscriptions = Object.entries(heard).map(([topic, list]) =>
    client.subscribe(topic, { onMessage: ({ message }) => list.push(message) }),
  );
  await until("a place to resume from", () => subscriptions.every(({ lastEventId }) => lastEventId !== undefined));
  const sent: Record<string, number[]> = { a: [], b: [] };
  for (let n = 0; cutter.left > 0; n++) {
    const topic = n % 3 ? "a" : "b";
    await publish(topic, n);
    sent[topic]?.push(n);
  }
  await until("the last messages", () => ["a", "b"].every((topic) => heard[topic]?.at(-1) === sent[topic]?.at(-1)));
  expect(heard).toEqual(sent);
  const count = (sent.a?.length ?? 0) + (sent.b?.length ?? 0);
  console.log(`${cutter.cuts} cuts, ${count} messages: none missed, none twice, all in order`);
  expect(cutter.cuts).toBe(CUTS);
  expect(count).toBeGreaterThan(CUTS / 10);
  for (const subscription of subscriptions) subscription.close();
}

test("a thousand cuts lose nothing, double nothing and change no order", { timeout: 120_000 }, async () => {
  const journal = await Journal.start();
  await survive(
    () => journal.url,
    async (topic, n) => {
      journal.publish(topic, n);
      await new Promise((resolve) => setTimeout(resolve, 3));
    },
  );
});

test("nor do they with the real server", { timeout: 180_000 }, async () => {
  const server = await Picloud.start();
  await server.open("a");
  await server.open("b");
  await survive(
    () => server.url,
    (topic, n) => server.publish(topic, n),
  );
});
