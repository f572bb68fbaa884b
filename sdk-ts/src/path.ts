import { PicloudError } from "./errors.js";

/** What may stand in a segment of a path, or in a query. */
export type Value = string | number | boolean | bigint;

/** The names in `{name}` and `{*rest}` of a path. */
export type ParamNames<Path extends string> = Path extends `${string}{${infer Name}}${infer Rest}`
  ? (Name extends `*${infer Bare}` ? Bare : Name) | ParamNames<Rest>
  : never;

/** What the segments of a path need; any names when the path's text is not known to the compiler. */
export type Params<Path extends string> = string extends Path ? Record<string, Value> : Record<ParamNames<Path>, Value>;

/** What a query may be made of: an array stands for repeats, and what is null or undefined is left out. */
export type QueryValues = Record<string, Value | null | undefined | readonly Value[]>;

/** A path with its parameters filled in and its query added. */
export function fill(path: string, params: Record<string, Value> = {}, query: QueryValues = {}): string {
  const filled = path.replace(/\{(\*?)([^}]+)\}/g, (_, rest: string, name: string) => {
    const value = params[name];
    if (value === undefined) throw new PicloudError(`the path ${path} needs the parameter \`${name}\``);
    const segments = rest ? String(value).split("/") : [String(value)];
    // These would silently make another path, and call another route.
    if (segments.some((segment) => /^\.{0,2}$/.test(segment))) {
      throw new PicloudError(`the parameter \`${name}\` of ${path} is empty, \`.\` or \`..\``);
    }
    return segments.map(encodeURIComponent).join("/");
  });
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    [value ?? []].flat().map((item) => [name, String(item)]),
  );
  return pairs.length ? `${filled}?${new URLSearchParams(pairs)}` : filled;
}
