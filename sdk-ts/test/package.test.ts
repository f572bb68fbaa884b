import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";

import { expect, onTestFinished, test } from "vitest";

import manifest from "../package.json" with { type: "json" };
import { Picloud } from "./picloud.js";

const run = promisify(execFile);

test("npm installs the client that the instance serves, and it works", async () => {
  const server = await Picloud.start();
  const address = `${server.url}/api/v1/sdk/client.tgz`;
  const answer = await fetch(address);
  expect([answer.status, answer.headers.get("content-type")]).toEqual([200, "application/gzip"]);
  const etag = answer.headers.get("etag") ?? "";
  expect((await fetch(address, { headers: { "if-none-match": etag } })).status).toBe(304);

  const folder = await mkdtemp(path.join(tmpdir(), "picloud-package-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  await writeFile(path.join(folder, "package.json"), '{"private": true, "type": "module"}');
  // It needs nothing else: npm asks the registry for what is optional, once, and goes on without.
  const nowhere = ["--registry", "http://127.0.0.1:1", "--fetch-retries", "0"];
  const words = ["install", "--no-audit", "--no-fund", ...nowhere, address];
  await run("npm", [...words, "--cache", path.join(folder, "cache")], { cwd: folder });
  await server.route("/hello", '"hi"');
  await writeFile(
    path.join(folder, "page.js"),
    `import { createClient } from "@picloud/client";
     import manifest from "@picloud/client/package.json" with { type: "json" };
     const hello = await createClient({ baseUrl: ${JSON.stringify(server.url)} }).endpoint("/hello").get();
     console.log(manifest.version, hello);`,
  );
  const { stdout } = await run(process.execPath, ["--no-warnings", "page.js"], { cwd: folder });
  expect(stdout.trim()).toBe(`${manifest.version} hi`);
});
