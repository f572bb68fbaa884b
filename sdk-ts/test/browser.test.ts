import path from "node:path";

import { build } from "esbuild";
import { chromium, type Browser, type Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";

import { until } from "./http.js";
import { Picloud } from "./picloud.js";

let browser: Browser;
beforeAll(async () => {
  browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
});
afterAll(() => browser.close());

/** A page in a window of its own, or in a tab of another page's window. */
async function open(url: string, beside?: Page) {
  const context = beside?.context() ?? (await browser.newContext());
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  const errors: string[] = [];
  page.on("pageerror", (error) => errors.push(error.message));
  const streams: string[] = [];
  page.on("request", (request) => request.url().includes("/realtime") && streams.push(request.url()));
  await page.goto(url);
  return { page, errors, streams };
}

test("chat: two windows talk in a room with a code, across a crash of the server", async () => {
  const server = await Picloud.start({ hasPages: true });
  await server.example("chat", "rooms.rhai", ["/chat/rooms/{room}/{action}"]);
  await server.open("chat:*", { auth_mode: "token" });
  const join = async (name: string, code: string) => {
    const window = await open(`${server.pages}/chat`);
    await window.page.getByLabel("Room").fill("tea");
    await window.page.getByLabel("Name").fill(name);
    await window.page.getByLabel("Code").fill(code);
    await window.page.getByRole("button", { name: "Join" }).click();
    return window;
  };
  const isOpen = (page: Page) => page.getByText("open", { exact: true }).waitFor();
  const say = async (page: Page, text: string) => {
    await page.getByLabel("Message").fill(text);
    await page.getByRole("button", { name: "Send" }).click();
    await page.getByRole("listitem").filter({ hasText: text }).waitFor();
  };
  const said = (page: Page) => page.getByRole("listitem").allTextContents();

  const ada = await join("Ada", "assam-first-flush");
  await isOpen(ada.page);
  await say(ada.page, "hello <b>tea</b>");
  const bob = await join("Bob", "assam-first-flush");
  await isOpen(bob.page);
  await bob.page.getByText("hello <b>tea</b>").waitFor();
  await say(bob.page, "hi Ada");
  await ada.page.getByText("hi Ada").waitFor();

  await server.kill();
  await ada.page.getByText("reconnecting").waitFor();
  await server.launch();
  await Promise.all([isOpen(ada.page), isOpen(bob.page)]);
  await say(ada.page, "still there?");
  await bob.page.getByText("still there?").waitFor();
  await say(bob.page, "yes");
  await ada.page.getByText("yes").waitFor();
  const all = ["Ada hello <b>tea</b>", "Bob hi Ada", "Ada still there?", "Bob yes"];
  expect(await said(ada.page)).toEqual(all);
  expect(await said(bob.page)).toEqual(all);

  const eve = await join("Eve", "a guess");
  await eve.page.getByRole("alert").getByText("that is not the code of this room").waitFor();
  expect(await said(eve.page)).toEqual([]);
  const status = await eve.page.evaluate(async () => (await fetch("/realtime/topics/chat:tea")).status);
  expect(status).toBe(401);
  expect([ada, bob, eve].flatMap(({ errors }) => errors)).toEqual([]);
});

test("poll: everybody sees each vote, and the tabs of a window share one connection", async () => {
  const server = await Picloud.start({ hasPages: true });
  await server.example("poll", "poll.rhai", ["/poll/results", "/poll/votes"]);
  await server.open("poll");
  const [one, other] = [await open(`${server.pages}/poll`), await open(`${server.pages}/poll`)];
  const shows = (page: Page, choice: string, count: number) =>
    page
      .getByRole("listitem")
      .filter({ has: page.getByRole("button", { name: choice }), hasText: new RegExp(`${count}$`) })
      .waitFor();
  await Promise.all([shows(one.page, "tea", 0), shows(other.page, "tea", 0)]);
  await one.page.getByRole("button", { name: "tea" }).click();
  await Promise.all([shows(one.page, "tea", 1), shows(other.page, "tea", 1)]);

  const tab = await open(`${server.pages}/poll`, one.page);
  await shows(tab.page, "tea", 1);
  await other.page.getByRole("button", { name: "water" }).click();
  await Promise.all([one, other, tab].map(({ page }) => shows(page, "water", 1)));
  expect(one.streams).toHaveLength(1);
  expect(tab.streams).toHaveLength(0);

  // The tab that has the connection goes: the other takes over.
  await one.page.close();
  await until("a stream of the other tab", () => tab.streams.length === 1);
  await other.page.getByRole("button", { name: "coffee" }).click();
  await shows(tab.page, "coffee", 1);

  await server.kill();
  await server.launch();
  await other.page.getByText("open").waitFor();
  await other.page.getByRole("button", { name: "tea" }).click();
  await Promise.all([other, tab].map(({ page }) => shows(page, "tea", 2)));
  expect([one, other, tab].flatMap(({ errors }) => errors)).toEqual([]);
});

test("a page of another origin calls a route that lets it in, and no other", async () => {
  const server = await Picloud.start({ hasPages: true });
  // By its other name the server is another origin; nobody serves that host.
  const here = server.url.replace("127.0.0.1", "localhost");
  const body = "#{ said: ctx.request.body, auth: ctx.request.headers.authorization }";
  await server.route("/open", body, { method: "PUT", cors: { origins: [here] } });
  await server.route("/throws", "throw 1", { method: "POST", cors: { origins: ["*"] } });
  await server.route("/others", body, { method: "PUT", cors: { origins: ["https://shop.example.com"] } });
  await server.route("/closed", body, { method: "PUT" });
  const { page } = await open(here);
  const call = (path: string, method: string) =>
    page.evaluate(
      async ([url, method]) => {
        const headers = { authorization: "Bearer x", "content-type": "application/json" };
        try {
          const response = await fetch(url, { method, headers, body: "1" });
          const id = response.headers.get("x-execution-id");
          return [response.status, id !== null, (await response.json()) as unknown] as const;
        } catch (error) {
          return String(error);
        }
      },
      [server.pages + path, method] as const,
    );
  expect(await call("/open", "PUT")).toEqual([200, true, { said: 1, auth: "Bearer x" }]);
  const [status, , problem] = await call("/throws", "POST");
  expect([status, problem]).toEqual([502, expect.objectContaining({ status: 502 })]);
  for (const path of ["/others", "/closed"]) expect(await call(path, "PUT")).toContain("Failed to fetch");
  // What was not let in did not run, either: its browser asked first.
  const { items } = (await server.api("GET", "/apps/shop/executions")) as { items: unknown[] };
  expect(items).toHaveLength(2);
});

test("a page of an origin that a topic does not let in is told so, and the others of its stream go on", async () => {
  const server = await Picloud.start({ hasPages: true });
  // By its other name the server is another origin; the page is of nobody's app.
  const here = server.url.replace("127.0.0.1", "localhost");
  await server.open("ours");
  await server.open("theirs", { cors_origins: [here] });
  const { page, errors } = await open(here);
  const { outputFiles } = await build({
    stdin: {
      contents: 'export { createClient } from "./src/index.ts"',
      resolveDir: path.join(import.meta.dirname, ".."),
    },
    bundle: true,
    format: "iife",
    globalName: "picloud",
    write: false,
  });
  await page.evaluate(`${outputFiles[0]?.text ?? ""};globalThis.picloud = picloud`);
  await page.evaluate((baseUrl) => {
    const { createClient } = (globalThis as unknown as { picloud: typeof import("../src/index.js") }).picloud;
    const client = createClient({ baseUrl });
    const seen: Record<string, string> = {};
    Object.assign(globalThis, { seen });
    for (const topic of ["ours", "theirs", "nobodys"]) {
      client.subscribe(topic, {
        onMessage: ({ message }) => (seen[topic] = String(message)),
        onStatus: (status, error) => (seen[topic] = `${status} ${error?.message ?? ""}`),
      });
    }
  }, server.pages);
  const seen = (topic: string) =>
    page.evaluate((topic) => (globalThis as unknown as { seen: Record<string, string> }).seen[topic], topic);
  await expect.poll(() => seen("ours"), { timeout: 30_000 }).toContain("closed");
  expect(await seen("ours")).toContain("cors_origins");
  await expect.poll(() => seen("nobodys"), { timeout: 30_000 }).toContain("closed there is no topic");
  await expect.poll(() => seen("theirs"), { timeout: 30_000 }).toContain("open");
  await server.publish("theirs", "hello");
  await expect.poll(() => seen("theirs"), { timeout: 30_000 }).toBe("hello");
  expect(errors).toEqual([]);
});
