// Fails when what a page loads grows past its limit.
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

const LIMITS = [
  { name: "core", code: 'export { createClient } from "./dist/index.js"', bytesMax: 6650 },
  { name: "react", code: 'export * from "./dist/react.js"', bytesMax: 1024 },
  { name: "svelte", code: 'export * from "./dist/svelte.js"', bytesMax: 1024 },
];

for (const { name, code, bytesMax } of LIMITS) {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: "." },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    external: ["react", "svelte"],
    write: false,
  });
  const bytes = gzipSync(outputFiles[0].contents).length;
  console.log(`${name}: ${bytes} bytes gzipped, of ${bytesMax}`);
  if (bytes > bytesMax) process.exitCode = 1;
}
