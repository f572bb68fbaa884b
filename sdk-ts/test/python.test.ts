import { spawn } from "node:child_process";
import path from "node:path";
import { createInterface } from "node:readline";

import { expect, onTestFinished, test } from "vitest";

import { Cutter } from "./cutter.js";
import { problem, until } from "./http.js";
import { Journal } from "./journal.js";
import { Picloud } from "./picloud.js";

const FOLLOW = path.resolve(import.meta.dirname, "../../examples/python-client/follow.py");

/** Run the client that was written from docs/protocol.md, and read what it prints. */
function follow(url: string, topics: readonly string[], token = "") {
  const child = spawn("python3", [FOLLOW, url, ...topics], { env: { ...process.env, PICLOUD_TOKEN: token } });
  onTestFinished(() => void child.kill());
  const heard: Record<string, unknown>[] = [];
  createInterface(child.stdout).on("line", (line) => heard.push(JSON.parse(line) as Record<string, unknown>));
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (piece: string) => (errors += piece));
  return { child, heard, errors: () => errors };
}

test("sixty lines of Python miss nothing and hear nothing twice, whatever is cut", async () => {
  const journal = await Journal.start();
  const cutter = await Cutter.start(() => journal.url, 5, 1000);
  const { heard } = follow(cutter.url, ["a", "b"], "secret");
  await until("a first stream", () => journal.streams.size > 0);
  let n = 0;
  while (cutter.left > 0 || n < 50) {
    journal.publish(n % 2 ? "a" : "b", n++);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await until("all", () => heard.at(-1)?.message === n - 1);
  const messages = heard.map(({ message }) => message as number);
  // What was published before the first `ready` arrived is not for it.
  const first = messages[0] ?? NaN;
  expect(messages).toEqual(Array.from({ length: n - first }, (_, i) => first + i));
  expect(messages.length).toBeGreaterThan(20);
  expect(journal.got.every(({ headers }) => headers.authorization === "Bearer secret")).toBe(true);
  journal.end("expired");
  journal.publish("a", "later");
  await until("the message after", () => heard.at(-1)?.message === "later");
});

test("the Python client says what it is refused", async () => {
  const journal = await Journal.start();
  journal.refuse = () => ({ status: 404, body: problem(404, "not_found") });
  const { child, errors } = follow(journal.url, ["a"]);
  await new Promise((resolve) => child.once("close", resolve));
  expect(errors()).toContain("it is not_found");
});

test("nor do they when the real server crashes", async () => {
  const server = await Picloud.start();
  await server.open("a", { auth_mode: "token" });
  await server.route("/token", '#{ token: pubsub::subscriber_token(["a"], 3600) }');
  const { token } = (await (await fetch(`${server.url}/token`)).json()) as { token: string };
  const { heard } = follow(server.url, ["a"], token);
  let probes = 0;
  // It says nothing of `ready`: what is heard first tells that it is there.
  while (heard.length === 0) {
    await server.publish("a", --probes);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  for (let n = 1; n <= 20; n++) {
    await server.publish("a", n);
    if (n % 10 === 5) {
      await server.kill();
      await server.launch();
    }
  }
  await until("the last", () => heard.at(-1)?.message === 20);
  const messages = heard.map(({ message }) => message as number).filter((message) => message > 0);
  expect(messages).toEqual(Array.from({ length: 20 }, (_, n) => n + 1));
});
