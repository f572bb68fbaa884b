// @vitest-environment happy-dom
import { act, cleanup, render, renderHook, screen, waitFor } from "@testing-library/react";
import { StrictMode } from "react";
import { afterEach, expect, test } from "vitest";

import { createClient } from "../src/index.js";
import { useEndpoint, useTopic } from "../src/react.js";
import { json, problem, serve, until } from "./http.js";
import { Journal } from "./journal.js";

afterEach(cleanup);
test("useTopic shows what comes, keeps so many, and leaves with the component", async () => {
  const journal = await Journal.start();
  const client = createClient({ baseUrl: journal.url, realtime: { backoff: { baseMs: 5, maxMs: 20 } } });
  function Room() {
    const { messages, status } = useTopic<number>(client, "a", { keep: 2 });
    return (
      <p>
        {status}: {messages.map(({ message }) => message).join(",")}
      </p>
    );
  }
  const page = render(
    <StrictMode>
      <Room />
    </StrictMode>,
  );
  await waitFor(() => screen.getByText("open:"));
  act(() => [1, 2, 3].forEach((n) => journal.publish("a", n)));
  await waitFor(() => screen.getByText("open: 2,3"));
  page.unmount();
  await until("no stream", () => journal.streams.size === 0);
});

test("useTopic follows another topic when it is given another", async () => {
  const journal = await Journal.start();
  const client = createClient({ baseUrl: journal.url });
  const { result, rerender } = renderHook(({ topic }) => useTopic(client, topic), { initialProps: { topic: "a" } });
  await waitFor(() => expect(result.current.status).toBe("open"));
  rerender({ topic: "b" });
  await waitFor(() => expect(result.current.status).toBe("open"));
  journal.publish("a", "old");
  journal.publish("b", "new");
  await waitFor(() => expect(result.current.messages.map(({ message }) => message)).toEqual(["new"]));
  await until("one stream", () => journal.streams.size === 1);
});

test("useTopic keeps no message where it is told to, and tells each", async () => {
  const journal = await Journal.start();
  const client = createClient({ baseUrl: journal.url });
  const heard: unknown[] = [];
  const onMessage = ({ message }: { message: unknown }) => heard.push(message);
  const { result } = renderHook(() => useTopic(client, "a", { keep: 0, onMessage }));
  await waitFor(() => expect(result.current.status).toBe("open"));
  act(() => [1, 2, 3].forEach((n) => journal.publish("a", n)));
  await waitFor(() => expect(heard).toEqual([1, 2, 3]));
  expect(result.current.messages).toEqual([]);
});

test("useTopic asks for tokens as the page does now, and keeps one connection for one `getToken`", async () => {
  const journal = await Journal.start();
  const client = createClient({ baseUrl: journal.url });
  const { result, rerender } = renderHook(
    ({ user }) => {
      const getToken = () => `token of ${user}`;
      return [useTopic(client, "a", { getToken }), useTopic(client, "b", { getToken })] as const;
    },
    { initialProps: { user: "Ada" } },
  );
  const areOpen = () => waitFor(() => expect(result.current.map(({ status }) => status)).toEqual(["open", "open"]));
  await areOpen();
  rerender({ user: "Bob" });
  journal.end("expired");
  await until("another stream", () => journal.asked === 2);
  await areOpen();
  const tokens = journal.got.map(({ headers }) => headers.authorization);
  expect(tokens).toEqual(["Bearer token of Ada", "Bearer token of Bob"]);
});

test("useTopic begins another topic where that one's page says", async () => {
  const journal = await Journal.start();
  journal.publish("b", "missed");
  const first: { topic: string; from?: string } = { topic: "a" };
  const client = createClient({ baseUrl: journal.url });
  const { result, rerender } = renderHook(
    ({ topic, from }) => useTopic(client, topic, from === undefined ? {} : { lastEventId: from }),
    { initialProps: first },
  );
  await waitFor(() => expect(result.current.status).toBe("open"));
  rerender({ topic: "b", from: "earliest" });
  await waitFor(() => expect(result.current.messages.map(({ message }) => message)).toEqual(["missed"]));
});

test("useEndpoint takes what a path and a query take", async () => {
  const { url, got } = await serve((request, response) => json(response, 200, request.url));
  const users = createClient({ baseUrl: url }).endpoint<never, string, "/users/{id}">("/users/{id}");
  const { result, rerender } = renderHook(({ id, n }) => useEndpoint(users, { params: { id }, query: { n } }), {
    initialProps: { id: 9007199254740993n, n: NaN },
  });
  await waitFor(() => expect(result.current.data).toBe("/users/9007199254740993?n=NaN"));
  rerender({ id: 9007199254740993n, n: NaN });
  rerender({ id: 9007199254740992n, n: Infinity });
  await waitFor(() => expect(result.current.data).toBe("/users/9007199254740992?n=Infinity"));
  expect(got).toHaveLength(2);
});

test("useEndpoint's call ends with the signal that it is given, and says so", async () => {
  const { url, got } = await serve(() => undefined);
  const hangs = createClient({ baseUrl: url }).endpoint("/hangs");
  const ending = new AbortController();
  const { result } = renderHook(() => useEndpoint(hangs, { signal: ending.signal }));
  await until("the call", () => got.length === 1);
  act(() => ending.abort(new Error("enough")));
  await waitFor(() => expect(result.current).toMatchObject({ isLoading: false, error: { message: "enough" } }));
});

test("useEndpoint calls, calls again for other arguments and when asked, and says what went wrong", async () => {
  const { url, got } = await serve((request, response) =>
    request.url === "/users/0" ? json(response, 404, problem(404, "not_found")) : json(response, 200, request.url),
  );
  const users = createClient({ baseUrl: url }).endpoint<never, string, "/users/{id}">("/users/{id}");
  const { result, rerender } = renderHook(({ id }) => useEndpoint(users, { params: { id } }), {
    initialProps: { id: 1 },
  });
  expect(result.current).toMatchObject({ data: undefined, isLoading: true });
  await waitFor(() => expect(result.current).toMatchObject({ data: "/users/1", isLoading: false, error: undefined }));
  rerender({ id: 1 });
  expect(got).toHaveLength(1);
  rerender({ id: 2 });
  await waitFor(() => expect(result.current.data).toBe("/users/2"));
  act(() => result.current.reload());
  expect(result.current).toMatchObject({ data: "/users/2", isLoading: true });
  await waitFor(() => expect(result.current.isLoading).toBe(false));
  expect(got).toHaveLength(3);
  rerender({ id: 0 });
  await waitFor(() => expect(result.current.error).toMatchObject({ status: 404 }));
});
