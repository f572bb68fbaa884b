import { expect, test } from "vitest";

import { createClient } from "../src/index.js";
import { Picloud } from "./picloud.js";

test("routes answer as scripts say, and problems as the server says", async () => {
  const server = await Picloud.start();
  const client = createClient({ baseUrl: server.url });
  await server.route(
    "/hello/{name}",
    "#{ hello: ctx.request.params.name, body: ctx.request.body, q: ctx.request.query }",
  );
  const hello = client.endpoint("/hello/{name}");
  const answer = await hello.put({
    params: { name: "Ada Lovelace/1" },
    query: { a: [1, 2], b: true },
    body: { x: [1] },
  });
  expect(answer).toEqual({ hello: "Ada Lovelace/1", body: { x: [1] }, q: { a: "2", b: "true" } });

  await server.route("/throw", 'throw "no"');
  await expect(client.endpoint("/throw").get()).rejects.toMatchObject({
    status: 502,
    problem: "script_failed",
    executionId: expect.stringMatching(/^[0-9a-f-]{36}$/) as string,
  });
  await expect(client.endpoint("/nowhere").get()).rejects.toMatchObject({ status: 404, problem: "not_found" });
  await server.route("/refuses", '#{ statusCode: 422, body: #{ error: "no name" } }');
  await expect(client.endpoint("/refuses").post()).rejects.toMatchObject({
    status: 422,
    body: { error: "no name" },
    executionId: expect.stringMatching(/^[0-9a-f-]{36}$/) as string,
  });
});

test("a POST with a key runs once, however often it arrives", async () => {
  const server = await Picloud.start();
  const source =
    'let c = kv::collection("c"); let n = c.get("n"); if n == () { n = 0; } c.set("n", n + 1); #{ n: n + 1 }';
  await server.route("/once", source, { method: "POST", idempotency: { ttl_s: 60, keep_answer: true } });
  // The first answer is lost on its way.
  let lost = false;
  const losing: typeof fetch = async (...args) => {
    const response = await fetch(...args);
    if (lost) return response;
    lost = true;
    throw new TypeError("the connection was lost");
  };
  const client = createClient({ baseUrl: server.url, fetch: losing });
  expect(await client.endpoint("/once").post({ body: {}, idempotencyKey: true })).toEqual({ n: 1 });
  expect(await client.endpoint("/once").post({ body: {}, idempotencyKey: true })).toEqual({ n: 2 });
});
