import { execFile, spawn, type ChildProcess } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

import { onTestFinished } from "vitest";

const ROOT = path.resolve(import.meta.dirname, "../..");
const PASSWORD = "correct horse battery";
/** The Postgres that servers use in place of the embedded database, where there is one. */
const POSTGRES = process.env.PICLOUD_TEST_SDK_POSTGRES_URL;

const SETTINGS = {
  PICLOUD_OWNER_PASSWORD: PASSWORD,
  // Several nodes must be given one; only the embedded database's one node makes its own.
  PICLOUD_MASTER_KEY: Buffer.alloc(32, 1).toString("base64"),
  // A thousand cuts are a thousand replays.
  PICLOUD_STREAM_REPLAYS_PER_MINUTE_MAX: "100000",
};

const run = promisify(execFile);

/** Browsers find this machine by every name below `localhost`; Node does not. */
const HOST = "shop.localhost";

/** A real server of a test's own; it is gone when the test ends. */
export class Picloud {
  url = "";
  token = "";
  readonly #folder: string;
  #database: string | undefined;
  #port = 0;
  #process: ChildProcess | undefined;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** Start one with an app; where its pages are looked at, on a host of its own, which restricts them in nothing. */
  static async start(more: { hasPages?: boolean } = {}): Promise<Picloud> {
    const server = new Picloud(await mkdtemp(path.join(tmpdir(), "picloud-sdk-")));
    onTestFinished(async () => {
      await server.kill();
      if (server.#database) await run("dropdb", ["--maintenance-db", String(POSTGRES), server.#database]);
      await rm(server.#folder, { recursive: true, force: true });
    });
    if (POSTGRES) {
      server.#database = `picloud_sdk_${crypto.randomUUID().replaceAll("-", "")}`;
      await run("createdb", ["--maintenance-db", POSTGRES, server.#database]);
    }
    await server.launch();
    const { token } = (await server.api("POST", "/auth/login", { name: "owner", password: PASSWORD })) as {
      token: string;
    };
    server.token = token;
    await server.api("POST", "/apps", { slug: "shop", hosts: more.hasPages ? [HOST] : [] });
    return server;
  }

  /** Where the app's pages are, for a browser. */
  get pages(): string {
    return this.url.replace("127.0.0.1", HOST);
  }

  /** Start the process, again on the same port. */
  async launch(): Promise<void> {
    const program = process.env.PICLOUD_BIN ?? path.join(ROOT, "target/debug/picloud");
    if (!existsSync(program)) throw new Error("the server is not built: run `cargo build -p picloud`");
    const words = ["serve", "--listen", `127.0.0.1:${this.#port}`, "--data-dir", path.join(this.#folder, "data")];
    // Compiling the guest takes seconds: what was compiled is shared.
    words.push("--cache-dir", path.join(ROOT, "target/picloud-test-cache"));
    if (POSTGRES && this.#database) words.push("--database-url", POSTGRES.replace(/[^/]*$/, this.#database));
    const child = spawn(program, words, {
      cwd: this.#folder,
      env: { ...process.env, ...SETTINGS },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#process = child;
    let log = "";
    child.stderr.setEncoding("utf8").on("data", (piece: string) => (log = (log + piece).slice(-10_000)));
    this.url = await new Promise<string>((resolve, reject) => {
      createInterface(child.stdout).on("line", (line) => {
        if (line.startsWith("listening on ")) resolve(line.slice("listening on ".length));
      });
      child.on("exit", () => reject(new Error(`the server did not start:\n${log}`)));
    });
    this.#port = Number(new URL(this.url).port);
    while ((await fetch(`${this.url}/readyz`)).status !== 200) await new Promise((resolve) => setTimeout(resolve, 20));
  }

  /** End the process as a crash does. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  }

  /** Call the server's own API, as the owner. */
  async api(method: string, path: string, body?: unknown): Promise<unknown> {
    const response = await fetch(`${this.url}/api/v1${path}`, {
      method,
      headers: { "content-type": "application/json", ...(this.token && { authorization: `Bearer ${this.token}` }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return text ? (JSON.parse(text) as unknown) : undefined;
  }

  /** Make a script, and a route to it. */
  async route(path: string, source: string, more: Record<string, unknown> = {}): Promise<void> {
    const script = (await this.api("POST", "/apps/shop/scripts", { name: `s-${Math.random()}`, source })) as {
      id: string;
    };
    await this.api("POST", "/apps/shop/routes", { script_id: script.id, path, ...more });
  }

  /** Deploy an example: its page, built, and a script with its routes. */
  async example(name: string, script: string, routes: readonly string[]): Promise<void> {
    const examples = path.join(ROOT, "examples", name);
    const html = path.join(this.#folder, `${name}.html`);
    await run(process.execPath, [path.join(ROOT, "sdk-ts/scripts/page.mjs"), name, html]);
    await this.api("PUT", `/apps/shop/kv/pages/${name}`, await readFile(html, "utf8"));
    await this.route(`/${name}`, await readFile(path.join(examples, "page.rhai"), "utf8"), { method: "GET" });
    const source = await readFile(path.join(examples, script), "utf8");
    for (const route of routes) await this.route(route, source);
  }

  /** Let pages follow a topic. */
  async open(topic: string, more: Record<string, unknown> = {}): Promise<void> {
    await this.api("PUT", `/apps/shop/topics/${encodeURIComponent(topic)}`, { auth_mode: "public", ...more });
  }

  /** Publish a message. */
  async publish(topic: string, message: unknown): Promise<void> {
    await this.api("POST", `/apps/shop/topics/${encodeURIComponent(topic)}/messages`, { message });
  }
}
