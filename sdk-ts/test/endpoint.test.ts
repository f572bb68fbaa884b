import * as v from "valibot";
import { expect, expectTypeOf, test, vi } from "vitest";
import { z } from "zod";

import {
  ConnectionError,
  createClient,
  ProblemError,
  TimeoutError,
  ValidationError,
  type ClientOptions,
  type Execution,
} from "../src/index.js";
import { json, problem, serve } from "./http.js";

interface User {
  id: number;
  name: string;
}

const clientOf = (baseUrl: string, options: Partial<ClientOptions> = {}) => createClient({ baseUrl, ...options });

async function rejection(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => expect.unreachable("it should have failed"),
    (error: unknown) => error,
  );
}

test("each method goes out as it is, with params, query, headers and a JSON body", async () => {
  const { url, got } = await serve((_, response) => json(response, 200, { fine: true }));
  const users = clientOf(`${url}/`).endpoint("/api/users/{id}");
  await users.get({ params: { id: 7 }, query: { full: true } });
  for (const method of ["post", "put", "patch", "delete"] as const) {
    const answer = await users[method]({ params: { id: "a b" }, body: { name: "Ada" }, headers: { "x-one": "1" } });
    expect(answer).toEqual({ fine: true });
  }
  expect(got.map(({ method, url: path, text }) => [method, path, text])).toEqual([
    ["GET", "/api/users/7?full=true", ""],
    ["POST", "/api/users/a%20b", '{"name":"Ada"}'],
    ["PUT", "/api/users/a%20b", '{"name":"Ada"}'],
    ["PATCH", "/api/users/a%20b", '{"name":"Ada"}'],
    ["DELETE", "/api/users/a%20b", '{"name":"Ada"}'],
  ]);
  expect(got[1]?.headers).toMatchObject({ "content-type": "application/json", "x-one": "1" });
});

test("forms, text with a type, and bytes go out as they are", async () => {
  const { url, got } = await serve((_, response) => json(response, 200, null));
  const any = clientOf(url).endpoint("/any");
  await any.post({ body: new URLSearchParams({ a: "1 2" }) });
  await any.post({ body: "plain", headers: { "content-type": "text/plain" } });
  await any.post({ body: new TextEncoder().encode("bytes") });
  await any.post({ body: "a string" });
  expect(got.map(({ text }) => text)).toEqual(["a=1+2", "plain", "bytes", '"a string"']);
  expect(got[0]?.headers["content-type"]).toContain("x-www-form-urlencoded");
  expect(got[3]?.headers["content-type"]).toBe("application/json");
});

test("a stream is sent whole, and again where the call is tried again", async () => {
  let calls = 0;
  const { url, got } = await serve((_, response) =>
    ++calls === 1 ? json(response, 503, problem(503, "overloaded")) : json(response, 200, null),
  );
  const body = new Blob(["some ", "bytes"]).stream();
  await clientOf(url)
    .endpoint("/x")
    .put({ body, headers: { "content-type": "image/png" } });
  expect(got.map(({ text, headers }) => [text, headers["content-type"]])).toEqual([
    ["some bytes", "image/png"],
    ["some bytes", "image/png"],
  ]);
  const endless = new ReadableStream();
  expect(await rejection(clientOf(url).endpoint("/x").post({ body: endless, timeoutMs: 100 }))).toBeInstanceOf(
    TimeoutError,
  );
  expect(got).toHaveLength(2);
});

test.each([new Map([["a", 1]]), new Set([1]), new Error("no"), new Response("text"), () => 1, Symbol("s")])(
  "what JSON would silently lose is not sent: %o",
  async (body) => {
    const { url, got } = await serve((_, response) => json(response, 200, null));
    const error = await rejection(clientOf(url).endpoint("/x").post({ body }));
    expect(error).toMatchObject({ name: "PicloudError", message: "the body is nothing that JSON can say" });
    for (const fine of [{}, [], Object.create(null), { a: undefined }, new Date(0), "", 0, false, null]) {
      await clientOf(url).endpoint("/x").post({ body: fine });
    }
    expect(got.map(({ text }) => text).join()).toBe('{},[],{},{},"1970-01-01T00:00:00.000Z","",0,false,null');
  },
);

test("an answer is read by its content type", async () => {
  const { url } = await serve(({ url: path }, response) => {
    if (path === "/none") return response.writeHead(204).end();
    if (path === "/text") return response.writeHead(200, { "content-type": "text/plain; charset=utf-8" }).end("hi");
    if (path === "/bytes") return response.writeHead(200, { "content-type": "image/png" }).end("png");
    return response.writeHead(200, { "content-type": "application/json" }).end("{nonsense");
  });
  const client = clientOf(url);
  expect(await client.endpoint("/none").get()).toBeUndefined();
  expect(await client.endpoint("/text").get()).toBe("hi");
  expect(
    await client
      .endpoint<never, Blob>("/bytes")
      .get()
      .then((blob) => blob.text()),
  ).toBe("png");
  expect(await rejection(client.endpoint("/nonsense").get())).toMatchObject({ name: "PicloudError" });
});

test("a problem becomes an error that says all of it", async () => {
  const { url } = await serve((_, response) =>
    json(response, 502, problem(502, "script_failed", { execution_id: "e-1", field: "name" })),
  );
  const error = await rejection(clientOf(url).endpoint("/x").post());
  expect(error).toBeInstanceOf(ProblemError);
  expect(error).toMatchObject({
    status: 502,
    type: "urn:picloud:problem:script_failed",
    problem: "script_failed",
    title: "script_failed",
    detail: "it is script_failed",
    message: "it is script_failed",
    executionId: "e-1",
    field: "name",
  });
});

test("a script's own answer of 400 and above is an error too, with its body", async () => {
  const { url } = await serve((_, response) =>
    json(response, 422, { error: "`name` is missing" }, { "x-execution-id": "e-1" }),
  );
  const error = await rejection(clientOf(url).endpoint("/x").post());
  expect(error).toMatchObject({
    status: 422,
    type: "about:blank",
    problem: undefined,
    executionId: "e-1",
    body: { error: "`name` is missing" },
  });
});

test.each([
  ["get", 503, 3],
  ["put", 503, 3],
  ["delete", 502, 3],
  ["get", 429, 3],
  ["post", 503, 1],
  ["patch", 503, 1],
  ["get", 404, 1],
  ["get", 500, 1],
] as const)("%s answered with %i is tried %i times", async (method, status, times) => {
  const { url, got } = await serve((_, response) => json(response, status, problem(status, "overloaded")));
  const error = await rejection(clientOf(url).endpoint("/x")[method]());
  expect(error).toMatchObject({ status });
  expect(got).toHaveLength(times);
});

test("what failed in a script is not tried again", async () => {
  const { url, got } = await serve((_, response) =>
    json(response, 504, problem(504, "timed_out", { execution_id: "e-1" })),
  );
  expect(await rejection(clientOf(url).endpoint("/x").get())).toMatchObject({ executionId: "e-1" });
  expect(got).toHaveLength(1);
});

test("a script that says itself that it is busy is taken at its word", async () => {
  let calls = 0;
  const { url } = await serve((_, response) =>
    json(response, ++calls === 1 ? 503 : 200, { busy: true }, { "x-execution-id": `e-${calls}` }),
  );
  expect(await clientOf(url).endpoint("/x").get()).toEqual({ busy: true });
  expect(calls).toBe(2);
});

test("a POST is tried again with an idempotency key, the same each time, until its answer is there", async () => {
  let calls = 0;
  const { url, got } = await serve((_, response) => {
    calls++;
    if (calls === 1) return response.destroy();
    if (calls === 2) return json(response, 409, problem(409, "idempotency_in_progress"));
    return json(response, 201, { made: true });
  });
  expect(await clientOf(url).endpoint("/x").post({ body: 1, idempotencyKey: true })).toEqual({ made: true });
  const keys = got.map(({ headers }) => headers["idempotency-key"]);
  expect(keys[0]).toMatch(/^[a-z0-9-]{10,}$/);
  expect(new Set(keys).size).toBe(1);
  await clientOf(url).endpoint("/x").post({ idempotencyKey: "mine" });
  expect(got.at(-1)?.headers["idempotency-key"]).toBe("mine");
});

test("Retry-After is honoured, and given up on where it is later than the time that is left", async () => {
  let first = true;
  const { url, got } = await serve((_, response) => {
    if (!first) return json(response, 200, 1);
    first = false;
    return json(response, 503, problem(503, "overloaded"), { "retry-after": "1" });
  });
  const begun = Date.now();
  expect(await clientOf(url).endpoint("/x").get()).toBe(1);
  expect(Date.now() - begun).toBeGreaterThanOrEqual(1000);
  first = true;
  const error = await rejection(clientOf(url).endpoint("/x").get({ timeoutMs: 900 }));
  expect(error).toMatchObject({ status: 503, retryAfterMs: 1000 });
  expect(got).toHaveLength(3);
});

test("a server that cannot be reached is a ConnectionError, after its retries", async () => {
  const fetch = vi.fn(() => Promise.reject(new TypeError("nobody there")));
  const error = await rejection(clientOf("http://x.test", { fetch, retries: 1 }).endpoint("/x").get());
  expect(error).toBeInstanceOf(ConnectionError);
  expect((error as Error).cause).toBeInstanceOf(TypeError);
  expect(fetch).toHaveBeenCalledTimes(2);
});

test("`fetch` is called as a function: a browser's own refuses to be a method of ours", async () => {
  const { url } = await serve((_, response) => json(response, 200, 1));
  const fetch = function (this: unknown, ...args: Parameters<typeof globalThis.fetch>) {
    if (this !== undefined && this !== globalThis) throw new TypeError("Illegal invocation");
    return globalThis.fetch(...args);
  };
  expect(await clientOf(url, { fetch }).endpoint("/x").get()).toBe(1);
});

test("an answer that is cut off in its body is a ConnectionError, and a GET of it is tried again", async () => {
  const { url, got } = await serve((_, response) => {
    response.writeHead(200, { "content-type": "application/json", "content-length": "100" });
    response.write("{", () => response.destroy());
  });
  expect(await rejection(clientOf(url, { retries: 1 }).endpoint("/x").get())).toBeInstanceOf(ConnectionError);
  expect(got).toHaveLength(2);
});

test("the time-out counts for the whole call", async () => {
  const { url, got } = await serve(() => undefined);
  const begun = Date.now();
  const error = await rejection(clientOf(url, { timeoutMs: 200 }).endpoint("/x").get());
  expect(error).toBeInstanceOf(TimeoutError);
  expect(Date.now() - begun).toBeLessThan(5000);
  expect(got).toHaveLength(1);
});

test("an abort ends the call, its retries too, with the signal's reason", async () => {
  const { url, got } = await serve((_, response) =>
    json(response, 503, problem(503, "overloaded"), { "retry-after": "9" }),
  );
  const ending = new AbortController();
  const call = clientOf(url).endpoint("/x").get({ signal: ending.signal });
  await vi.waitUntil(() => got.length === 1);
  ending.abort(new Error("enough"));
  expect(await rejection(call)).toMatchObject({ message: "enough" });
  const before = AbortSignal.abort(new Error("at once"));
  expect(await rejection(clientOf(url).endpoint("/x").get({ signal: before }))).toMatchObject({ message: "at once" });
});

test("schemas check what goes out and what comes in, whoever made them", async () => {
  const { url, got } = await serve(({ url: path }, response) =>
    json(response, 200, path.endsWith("/1") ? { id: "1", name: "Ada" } : { id: [] }),
  );
  const byZod = z.object({ id: z.coerce.number(), name: z.string() });
  const byValibot = v.object({ name: v.pipe(v.string(), v.minLength(1)) });
  const users = clientOf(url).endpoint("/users/{id}", { body: byValibot, response: byZod });
  const user = await users.put({ params: { id: 1 }, body: { name: "Ada" } });
  expectTypeOf(user).toEqualTypeOf<User>();
  expect(user).toEqual({ id: 1, name: "Ada" });
  expect(await users.get({ params: { id: 1 } })).toEqual({ id: 1, name: "Ada" });

  const refused = await rejection(users.put({ params: { id: 1 }, body: { name: "" } }));
  expect(refused).toBeInstanceOf(ValidationError);
  expect(refused).toMatchObject({ of: "body", issues: [{ path: [{ key: "name" }] }] });
  expect((refused as Error).message).toContain("name: ");
  expect(got).toHaveLength(2);

  const odd = await rejection(users.get({ params: { id: 2 } }));
  expect(odd).toMatchObject({ name: "ValidationError", of: "response" });
});

test("an async route answers with an execution; another does not pass for one", async () => {
  const { url } = await serve(({ url: path }, response) =>
    json(response, 202, path === "/async" ? { execution_id: "e-1", accepted_at: "2026-11-21T11:00:00Z" } : {}),
  );
  const client = clientOf(url);
  const execution = await client.endpoint("/async", { dispatchMode: "async" }).post();
  expectTypeOf(execution).toEqualTypeOf<Execution>();
  expect(execution).toMatchObject({ id: "e-1", acceptedAt: "2026-11-21T11:00:00Z" });
  expect(await rejection(client.endpoint("/sync", { dispatchMode: "async" }).post())).toMatchObject({
    message: expect.stringContaining("no execution") as string,
  });
});

test("the compiler knows what a call needs", () => {
  const client = clientOf("http://x.test");
  const typed = client.endpoint<{ name: string }, User>("/users/{id}");
  expectTypeOf(typed.get).returns.resolves.toEqualTypeOf<User>();
  expectTypeOf(typed.post).parameter(0).toHaveProperty("body").toEqualTypeOf<{ name: string }>();
  const inferred = client.endpoint("/users/{id}/{*rest}");
  expectTypeOf(inferred.get).parameter(0).toHaveProperty("params").toHaveProperty("rest");
  const wrong = () => [
    // @ts-expect-error: the path needs `rest` too
    inferred.get({ params: { id: 1 } }),
    // @ts-expect-error: the path needs parameters
    inferred.get(),
    // @ts-expect-error: there is a body to send
    typed.post({ params: { id: 1 } }),
    client.endpoint("/users").get(),
  ];
  expect(wrong).toBeTypeOf("function");
});
