/** What an event of a stream says, as it stands there. */
export interface RawEvent {
  readonly event: string;
  /** Undefined when the event has no `id:` line. */
  readonly id: string | undefined;
  readonly data: string;
}

/**
 * Make a parser of Server-Sent Events: it takes text in pieces of any size and gives each event
 * as soon as it is whole. See https://html.spec.whatwg.org/multipage/server-sent-events.html;
 * `retry:` is left out, since our server never sends it.
 */
export function sseParser(onEvent: (event: RawEvent) => void): (piece: string) => void {
  let rest = "";
  let fields: Record<string, string | undefined> = {};
  return (piece) => {
    rest += piece;
    for (;;) {
      const end = /\r\n?|\n/.exec(rest);
      // A CR at the very end may be half of a CRLF.
      if (!end || (end[0] === "\r" && end.index === rest.length - 1)) return;
      const line = rest.slice(0, end.index);
      rest = rest.slice(end.index + end[0].length);
      if (!line) {
        const { event, id, data } = fields;
        fields = {};
        if (data !== undefined) onEvent({ event: event || "message", id, data });
        continue;
      }
      const [, name = "", value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
      const before = name === "data" ? fields.data : undefined;
      fields[name] = before === undefined ? value : `${before}\n${value}`;
    }
  };
}
