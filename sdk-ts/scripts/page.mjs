// Builds the page of an example, `node scripts/page.mjs chat page.html`: one HTML file with all in it.
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";

import { build } from "esbuild";
import { compile } from "svelte/compiler";

const svelte = {
  name: "svelte",
  setup({ onLoad }) {
    onLoad({ filter: /\.svelte$/ }, async ({ path: filename }) => {
      const { js } = compile(await readFile(filename, "utf8"), { filename, css: "injected", generate: "client" });
      return { contents: js.code, loader: "js" };
    });
  },
};

const [example, output] = process.argv.slice(2);
const here = path.resolve(import.meta.dirname, "..");
const { outputFiles } = await build({
  entryPoints: [path.join(here, "../examples", example, "src/main.ts")],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  conditions: ["browser"],
  nodePaths: [path.join(here, "node_modules")],
  alias: {
    "@picloud/client": path.join(here, "dist/index.js"),
    "@picloud/client/svelte": path.join(here, "dist/svelte.js"),
  },
  plugins: [svelte],
  write: false,
});
// A closing tag inside a string would end the script.
const code = outputFiles[0].text.replaceAll("</script", "<\\/script");
await writeFile(
  output,
  `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">` +
    `<title>${example}</title><style>body{font:1rem system-ui;max-width:40rem;margin:2rem auto;padding:0 1rem}</style>` +
    `<body><script type="module">${code}</script></body></html>`,
);
