import { afterEach, expect, test, vi } from "vitest";

import { cookieStorage, createClient, localStorageStorage, memoryStorage, type Session } from "../src/index.js";
import { json, problem, serve } from "./http.js";

afterEach(() => vi.unstubAllGlobals());

/** An app that gives tokens `t1`, `t2`, …, of which only the newest is good. */
async function app({ expiresInSeconds = 3600, refreshable = true } = {}) {
  let minted = 0;
  const state = { ended: false, refreshes: 0 };
  const mint = () => ({
    token: `t${++minted}`,
    expires_in: expiresInSeconds,
    ...(refreshable && { refresh_token: `r${minted}` }),
    user: "Ada",
  });
  const { url, got } = await serve((request, response) => {
    const isGood = request.headers.authorization === `Bearer t${minted}`;
    const body = (request.text ? JSON.parse(request.text) : {}) as Record<string, unknown>;
    switch (request.url) {
      case "/auth/login":
        return body.password === "right"
          ? json(response, 200, mint())
          : json(response, 401, problem(401, "unauthorized"));
      case "/auth/refresh":
        state.refreshes++;
        return !state.ended && body.refresh_token === `r${minted}`
          ? json(response, 200, mint())
          : json(response, 401, problem(401, "unauthorized"));
      case "/auth/logout":
        return json(response, isGood ? 200 : 401, {});
      default:
        return isGood ? json(response, 200, { hello: "Ada" }) : json(response, 401, problem(401, "unauthorized"));
    }
  });
  const expire = () => minted++;
  return { url, got, state, expire };
}

test("a login's token goes with the calls, a logout ends it, and both are told", async () => {
  const { url, got } = await app();
  const client = createClient({ baseUrl: url });
  const heard: (string | undefined)[] = [];
  const stop = client.auth.onChange((session) => heard.push(session?.token));
  await expect(client.auth.login({ password: "wrong" })).rejects.toMatchObject({ status: 401 });
  expect(await client.auth.token()).toBeNull();
  const session = await client.auth.login({ password: "right" });
  expect(session).toMatchObject({ token: "t1", refreshToken: "r1", answer: { user: "Ada" } });
  expect(await client.endpoint("/me").get()).toEqual({ hello: "Ada" });
  await client.auth.logout();
  expect(got.at(-1)).toMatchObject({ url: "/auth/logout", headers: { authorization: "Bearer t1" } });
  await expect(client.endpoint("/me").get()).rejects.toMatchObject({ status: 401 });
  expect(got.at(-1)?.headers.authorization).toBeUndefined();
  expect(heard).toEqual(["t1", undefined]);
  stop();
  await client.auth.login({ password: "right" });
  expect(heard).toHaveLength(2);
});

test("a token that is refused is renewed once, for any number of calls at once", async () => {
  const { url, state, expire } = await app();
  const client = createClient({ baseUrl: url });
  await client.auth.login({ password: "right" });
  await client.auth.setSession({ token: "old", refreshToken: "r1" });
  const me = client.endpoint("/me");
  const answers = await Promise.all([me.get(), me.get(), me.post(), me.patch()]);
  expect(answers).toHaveLength(4);
  expect(state.refreshes).toBe(1);
  expire();
  state.ended = true;
  await expect(me.get()).rejects.toMatchObject({ status: 401 });
  expect(await client.auth.session()).toBeNull();
});

test("a token about to end is renewed before it is used", async () => {
  const { url, state } = await app({ expiresInSeconds: 20 });
  const client = createClient({ baseUrl: url });
  await client.auth.login({ password: "right" });
  const tokens = await Promise.all([client.auth.token(), client.auth.token()]);
  expect(tokens).toEqual(["t2", "t2"]);
  expect(state.refreshes).toBe(1);
});

test("a session without a refresh token ends with its token", async () => {
  const client = createClient({ baseUrl: "http://x.test" });
  await client.auth.setSession({ token: "t", expiresAt: Date.now() - 1 });
  const heard: (Session | null)[] = [];
  client.auth.onChange((session) => heard.push(session));
  expect(await client.auth.token()).toBeNull();
  expect(heard).toEqual([null]);
});

test("a renewal that cannot reach the server keeps the session", async () => {
  const client = createClient({
    baseUrl: "http://x.test",
    retries: 0,
    fetch: () => Promise.reject(new TypeError("offline")),
  });
  const session = { token: "t", refreshToken: "r", expiresAt: Date.now() + 10_000 };
  await client.auth.setSession(session);
  expect(await client.auth.token()).toBe("t");
  await client.auth.setSession({ ...session, expiresAt: Date.now() - 1 });
  await expect(client.auth.token()).rejects.toMatchObject({ name: "ConnectionError" });
  expect(await client.auth.session()).toMatchObject({ refreshToken: "r" });
});

test("paths and the shape of the answer are the app's own", async () => {
  const { url, got } = await serve((_, response) => json(response, 200, { jwt: "x" }));
  const readSession = (answer: unknown) => ({ token: (answer as { jwt: string }).jwt });
  const client = createClient({ baseUrl: url, auth: { loginPath: "/in", logoutPath: null, readSession } });
  await client.auth.login({});
  await client.auth.logout();
  expect(got.map(({ url: path }) => path)).toEqual(["/in"]);
});

test("an answer without a token says what to do", async () => {
  const { url } = await serve((_, response) => json(response, 200, { jwt: "x" }));
  await expect(createClient({ baseUrl: url }).auth.login({})).rejects.toThrow("readSession");
});

test("what is in localStorage is everybody's, and a change of another tab is heard", async () => {
  const kept = new Map<string, string>();
  vi.stubGlobal("localStorage", {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, value: string) => void kept.set(key, value),
    removeItem: (key: string) => void kept.delete(key),
  });
  const page = new EventTarget();
  vi.stubGlobal("addEventListener", page.addEventListener.bind(page));
  const tab = () => createClient({ baseUrl: "http://x.test", auth: { storage: localStorageStorage() } });
  const [one, other] = [tab(), tab()];
  const heard: (string | undefined)[] = [];
  other.auth.onChange((session) => heard.push(session?.token));
  await one.auth.setSession({ token: "t" });
  page.dispatchEvent(Object.assign(new Event("storage"), { key: "picloud-session" }));
  expect(await other.auth.token()).toBe("t");
  await one.auth.setSession(null);
  page.dispatchEvent(Object.assign(new Event("storage"), { key: null }));
  expect(await other.auth.token()).toBeNull();
  expect(heard).toEqual(["t", undefined]);
  expect(kept.size).toBe(0);
});

test("a cookie keeps the session, escaped and with its attributes", async () => {
  const document = { cookie: "" };
  vi.stubGlobal("document", document);
  vi.stubGlobal("location", { protocol: "https:" });
  const storage = cookieStorage({ name: "s", maxAgeSeconds: 60, domain: "x.test" });
  await storage.save('{"token":"a;b"}');
  expect(document.cookie).toBe(
    "s=%7B%22token%22%3A%22a%3Bb%22%7D; path=/; samesite=lax; secure; domain=x.test; max-age=60",
  );
  document.cookie = `other=1; ${document.cookie.split("; ")[0]}`;
  expect(await storage.load()).toBe('{"token":"a;b"}');
  await storage.save(null);
  expect(document.cookie).toContain("max-age=0");
});

test("memory is each client's own", async () => {
  const [one, other] = [memoryStorage(), memoryStorage()];
  await one.save("x");
  expect(await other.load()).toBeNull();
});

/** Make pauses of so many milliseconds short. */
function hasten(slow: number): void {
  const { setTimeout } = globalThis;
  vi.stubGlobal("setTimeout", (run: () => void, ms?: number) => setTimeout(run, ms === slow ? 100 : ms));
}

/** A server whose renewal hangs until it is told to go on. */
async function hanging() {
  const state = { hangs: true };
  const { url, got } = await serve((request, response) => {
    if (request.url === "/auth/refresh") return state.hangs ? undefined : json(response, 200, { token: "new" });
    const isGood = request.headers.authorization === "Bearer new" || request.url === "/anybody";
    return json(response, isGood ? 200 : 401, isGood ? request.headers.authorization : problem(401, "unauthorized"));
  });
  const asked = () => got.filter((request) => request.url === "/auth/refresh").length;
  return { url, state, asked };
}

test.each(["ended", "refused"])("a call waits for a new token no longer than it may: the old one %s", async (why) => {
  const { url, asked } = await hanging();
  const client = createClient({ baseUrl: url });
  const expiresAt = why === "ended" ? Date.now() - 1 : undefined;
  await client.auth.setSession({ token: "old", refreshToken: "r", expiresAt });
  const me = client.endpoint("/me");
  const begun = Date.now();
  await expect(me.get({ timeoutMs: 200 })).rejects.toMatchObject({ name: "TimeoutError" });
  const ending = new AbortController();
  const call = me.get({ signal: ending.signal });
  setTimeout(() => ending.abort(new Error("enough")), 100);
  await expect(call).rejects.toThrow("enough");
  expect(Date.now() - begun).toBeLessThan(5000);
  // Both waited for the same one.
  expect(asked()).toBe(1);
});

test("while the old token does, a renewal that hangs keeps nobody waiting for long", async () => {
  hasten(5000);
  const { url } = await hanging();
  const client = createClient({ baseUrl: url });
  await client.auth.setSession({ token: "old", refreshToken: "r", expiresAt: Date.now() + 20_000 });
  const begun = Date.now();
  expect(await client.endpoint("/anybody").get()).toBe("Bearer old");
  expect(Date.now() - begun).toBeLessThan(4000);
});

test("a renewal that hangs ends by itself where calls have no end, and the next call begins another", async () => {
  hasten(30_000);
  const { url, state, asked } = await hanging();
  const client = createClient({ baseUrl: url, timeoutMs: 0 });
  await client.auth.setSession({ token: "old", refreshToken: "r", expiresAt: Date.now() - 1 });
  await expect(client.endpoint("/me").get()).rejects.toMatchObject({ name: "TimeoutError" });
  state.hangs = false;
  expect(await client.endpoint("/me").get()).toBe("Bearer new");
  expect(asked()).toBe(2);
});
