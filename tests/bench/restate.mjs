// A service for Restate that answers what our script answers. Serves it on PEER_PORT, registers it
// at the Restate server whose admin API is at PEER_ADMIN.

import * as restate from "@restatedev/restate-sdk";

const { PEER_PORT, PEER_ADMIN } = process.env;
const hello = async (context, name) => ({ hello: name, method: "POST" });
await restate.serve({ services: [restate.service({ name: "bench", handlers: { hello } })], port: Number(PEER_PORT) });

const register = () =>
  fetch(`${PEER_ADMIN}/deployments`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ uri: `http://127.0.0.1:${PEER_PORT}` }),
  });
const deadline = performance.now() + 30_000;
for (;;) {
  const answer = await register().catch((error) => error);
  if (answer.ok) {
    break;
  }
  if (performance.now() > deadline) {
    throw new Error(`not registered: ${answer.cause ?? answer.status}`);
  }
  await new Promise((resolve) => setTimeout(resolve, 50));
}
