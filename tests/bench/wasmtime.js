addEventListener("fetch", (event) => {
  const name = new URL(event.request.url).searchParams.get("name") ?? "world";
  event.respondWith(Response.json({ hello: name, method: event.request.method }));
});
