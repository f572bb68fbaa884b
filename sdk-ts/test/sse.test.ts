import { expect, test } from "vitest";

import { sseParser, type RawEvent } from "../src/sse.js";

const TEXT = [
  ": a comment",
  "",
  "event: ready",
  "id: p1",
  'data: {"a":1}',
  "",
  'data:{"no":"space"}',
  "",
  "id: p2",
  "data: two",
  "data: lines: and colons",
  "data",
  "",
  "event: without data",
  "",
  "",
].join("\n");

const EVENTS: RawEvent[] = [
  { event: "ready", id: "p1", data: '{"a":1}' },
  { event: "message", id: undefined, data: '{"no":"space"}' },
  { event: "message", id: "p2", data: "two\nlines: and colons\n" },
];

function parse(pieces: readonly string[]): RawEvent[] {
  const events: RawEvent[] = [];
  const feed = sseParser((event) => events.push(event));
  pieces.forEach(feed);
  return events;
}

test("a stream reads the same wherever it is cut into pieces, whatever ends its lines", () => {
  for (const newline of ["\n", "\r\n", "\r"]) {
    // After a CR the parser waits for what follows: the next event, or a comment.
    const text = TEXT.replaceAll("\n", newline) + ":";
    expect(parse(Array.from(text))).toEqual(EVENTS);
    for (let at = 0; at <= text.length; at++) {
      expect(parse([text.slice(0, at), text.slice(at)])).toEqual(EVENTS);
    }
  }
});

test("an event that is not whole yet is not given", () => {
  expect(parse(["data: 1\n"])).toEqual([]);
  expect(parse(["data: 1\n", "\n"])).toHaveLength(1);
});
