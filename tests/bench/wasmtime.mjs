// Makes `wasmtime.wasm` of `wasmtime.js`: a component of wasi:http with a JavaScript interpreter
// (StarlingMonkey) and the handler, parsed and ready, in its memory. Takes 20 seconds, once.

import { cp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { componentize } from "@bytecodealliance/componentize-js";

// The interpreter is built against 0.2.10 and jco brings the WIT of 0.2.12; what both have is the same.
const THEIRS = "0.2.12";
const OURS = "0.2.10";
const wit = "node_modules/@bytecodealliance/jco/lib/wit/builtin";

await rm("wit", { recursive: true, force: true });
await cp(join(wit, THEIRS), "wit/deps", { recursive: true });
for (const file of await readdir("wit", { recursive: true })) {
  if (file.endsWith(".wit")) {
    const text = await readFile(join("wit", file), "utf8");
    await writeFile(join("wit", file), text.replaceAll(THEIRS, OURS));
  }
}
const world = `package bench:peer; world handler { export wasi:http/incoming-handler@${OURS}; }`;
await writeFile("wit/world.wit", world);
const { component } = await componentize({ sourcePath: "wasmtime.js", witPath: "wit", worldName: "handler" });
await writeFile("wasmtime.wasm", component);
