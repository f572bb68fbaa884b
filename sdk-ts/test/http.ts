import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Server as NetServer, Socket } from "node:net";

import { onTestFinished } from "vitest";

/** A request that a test's server got. */
export interface Got {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingMessage["headers"];
  readonly text: string;
}

/** A server of a test's own, on a port of its own; it stops with the test. */
export async function serve(
  answer: (got: Got, response: ServerResponse) => void,
): Promise<{ url: string; got: Got[]; server: Server }> {
  const got: Got[] = [];
  const server = createServer((request, response) => {
    let text = "";
    request.setEncoding("utf8");
    request.on("data", (piece: string) => (text += piece));
    request.on("end", () => {
      const one = { method: request.method ?? "", url: request.url ?? "", headers: request.headers, text };
      got.push(one);
      answer(one, response);
    });
  });
  const port = await listen(server);
  return { url: `http://127.0.0.1:${port}`, got, server };
}

/** Listen on a free port until the test ends. */
export async function listen(server: NetServer): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  onTestFinished(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return (server.address() as AddressInfo).port;
}

/** Answer with JSON. */
export function json(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}) {
  const type = status < 400 ? "application/json" : "application/problem+json";
  response.writeHead(status, { "content-type": type, ...headers });
  response.end(JSON.stringify(body));
}

/** A problem as PiCloud answers it. */
export function problem(status: number, name: string, more: Record<string, unknown> = {}) {
  return { type: `urn:picloud:problem:${name}`, title: name, status, detail: `it is ${name}`, ...more };
}

/** Wait for a condition. */
export async function until(what: string, holds: () => boolean): Promise<void> {
  const begun = Date.now();
  while (!holds()) {
    if (Date.now() - begun > 15_000) throw new Error(`waited in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
