import { expect, expectTypeOf, test } from "vitest";

import { fill, type Params, type Value } from "../src/path.js";

test.each([
  ["/users/{id}", { id: 7 }, "/users/7"],
  ["/users/{id}", { id: "a/b ?ü" }, "/users/a%2Fb%20%3F%C3%BC"],
  ["/{a}/x/{b}", { a: true, b: 10n }, "/true/x/10"],
  ["/files/{*rest}", { rest: "a b/c" }, "/files/a%20b/c"],
  ["/plain", {}, "/plain"],
])("%s is filled with %o", (path, params: Record<string, Value>, filled) => {
  expect(fill(path, params)).toBe(filled);
});

test("a query repeats arrays and leaves out what is not there", () => {
  const query = { a: 1, b: [1, 2], c: null, d: undefined, e: false, f: "x&y" };
  expect(fill("/q", {}, query)).toBe("/q?a=1&b=1&b=2&e=false&f=x%26y");
  expect(fill("/q", {}, { a: null })).toBe("/q");
});

test("a parameter that is missing is named", () => {
  expect(() => fill("/users/{id}", {})).toThrow("needs the parameter `id`");
});

test.each(["", ".", ".."])("a segment that would make another path is refused: %o", (id) => {
  expect(() => fill("/users/{id}/key", { id })).toThrow("the parameter `id`");
  expect(() => fill("/files/{*rest}", { rest: `a/${id}` })).toThrow("the parameter `rest`");
});

test("the names of a path are known to the compiler", () => {
  expectTypeOf<Params<"/a/{id}/{*rest}">>().toEqualTypeOf<Record<"id" | "rest", Value>>();
  expectTypeOf<Params<string>>().toEqualTypeOf<Record<string, Value>>();
});
