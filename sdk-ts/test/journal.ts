import type { ServerResponse } from "node:http";

import { json, problem, serve, type Got } from "./http.js";

interface Entry {
  readonly place: number;
  readonly topic: string;
  readonly data: Record<string, unknown>;
}

interface Stream {
  readonly topics: readonly string[];
  readonly response: ServerResponse;
}

/**
 * A server that follows docs/protocol.md, for what cannot be asked of a real one: answers out of
 * the usual, pieces of any size, places that it does not know.
 */
export class Journal {
  readonly streams = new Set<Stream>();
  readonly got: Got[];
  readonly url: string;
  /** Refuse a request before all else: with an answer, or undefined to go on. */
  refuse: (
    got: Got,
    topics: readonly string[],
  ) => { status: number; body: unknown; headers?: Record<string, string> } | undefined = () => undefined;
  /** What `ready` says of the token's end. */
  expiresAt: (got: Got) => string | undefined = () => undefined;
  /** Places before this one are forgotten. */
  oldest = 0;
  readonly #entries: Entry[] = [];
  readonly #seqs = new Map<string, number>();
  #place = 0;

  private constructor(url: string, got: Got[]) {
    this.url = url;
    this.got = got;
  }

  static async start(): Promise<Journal> {
    const { url, got } = await serve((request, response) => journal.#answer(request, response));
    const journal: Journal = new Journal(url, got);
    return journal;
  }

  /** How often a stream was asked for. */
  get asked(): number {
    return this.got.length;
  }

  publish(topic: string, message: unknown): void {
    const seq = (this.#seqs.get(topic) ?? 0) + 1;
    this.#seqs.set(topic, seq);
    const data = { topic, id: `m${++this.#place}`, seq, published_at: "2026-11-21T11:00:00Z", message };
    const entry = { place: this.#place, topic, data };
    this.#entries.push(entry);
    for (const stream of this.streams) if (stream.topics.includes(topic)) send(stream, "message", data, entry.place);
  }

  publishEphemeral(topic: string, message: unknown): void {
    const data = { topic, id: `e${Math.random()}`, published_at: "2026-11-21T11:00:00Z", message };
    for (const stream of this.streams) if (stream.topics.includes(topic)) send(stream, "message", data);
  }

  /** Send something of our own on all streams. */
  write(text: string): void {
    for (const { response } of this.streams) response.write(text);
  }

  /** Be the journal of a backup, in which a topic has fewer messages than it had. */
  restore(topic: string, seq: number): void {
    this.#entries.length = 0;
    this.#seqs.set(topic, seq);
    this.oldest = ++this.#place;
  }

  /** End all streams with an event, or without a word. */
  end(event?: string, data: Record<string, unknown> = {}): void {
    for (const stream of this.streams) {
      if (event) send(stream, event, data);
      stream.response.end();
      this.streams.delete(stream);
    }
  }

  /** Cut all connections. */
  cut(): void {
    for (const { response } of this.streams) response.destroy();
  }

  #answer(got: Got, response: ServerResponse): void {
    const url = new URL(got.url, this.url);
    const topics = url.searchParams.getAll("topic");
    const refusal = this.refuse(got, topics);
    if (refusal) return json(response, refusal.status, refusal.body, refusal.headers);
    const last = got.headers["last-event-id"] as string | undefined;
    const place = last === "earliest" ? 0 : Number(last?.replace("p", "") ?? this.#place);
    if (Number.isNaN(place)) {
      return json(response, 400, problem(400, "invalid_request", { field: "last_event_id" }));
    }
    response.writeHead(200, { "content-type": "text/event-stream", date: new Date().toUTCString() });
    const stream = { topics, response };
    const expires = this.expiresAt(got);
    send(stream, "ready", { topics, ...(expires && { expires_at: expires }) }, place);
    if (place < this.oldest) for (const topic of topics) send(stream, "gap", { topic }, this.oldest);
    for (const entry of this.#entries) {
      if (entry.place > Math.max(place, this.oldest) && topics.includes(entry.topic)) {
        send(stream, "message", entry.data, entry.place);
      }
    }
    this.streams.add(stream);
    response.on("close", () => this.streams.delete(stream));
  }
}

function send({ response }: Stream, event: string, data: Record<string, unknown>, place?: number): void {
  const id = place === undefined ? "" : `id: p${place}\n`;
  response.write(`event: ${event}\n${id}data: ${JSON.stringify(data)}\n\n`);
}
