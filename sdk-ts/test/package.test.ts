import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises";
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

test("what npm packs of a fresh clone has what was compiled", async () => {
  const folder = await mkdtemp(path.join(tmpdir(), "picloud-pack-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  const here = path.resolve(import.meta.dirname, "..");
  const made = new Set(["dist", "node_modules", "reference"]);
  for (const name of await readdir(here)) {
    if (!made.has(name)) await cp(path.join(here, name), path.join(folder, name), { recursive: true });
  }
  await symlink(path.join(here, "node_modules"), path.join(folder, "node_modules"));
  const { stdout } = await run("npm", ["pack", "--json", "--offline", "--cache", path.join(folder, "cache")], {
    cwd: folder,
  });
  // What `prepack` prints stands before it.
  const [packed] = JSON.parse(stdout.slice(stdout.indexOf("[\n"))) as { files: { path: string }[] }[];
  const files = packed?.files.map((file) => file.path) ?? [];
  for (const name of ["index", "react", "svelte"]) {
    expect(files).toEqual(expect.arrayContaining([`dist/${name}.js`, `dist/${name}.d.ts`]));
  }
  expect(files.filter((name) => !name.startsWith("dist/")).toSorted()).toEqual(["README.md", "package.json"]);
});
