import { acrossTabs, createClient } from "@picloud/client";

interface Standing {
  count: Record<string, number>;
  total: number;
}

// Everybody sees the same: all tabs of a browser share one connection.
const client = createClient({ baseUrl: "", realtime: { share: acrossTabs("poll") } });
const results = client.endpoint<never, Standing>("/poll/results");
const votes = client.endpoint<{ choice: string }, Standing>("/poll/votes");

const list = document.createElement("ul");
const status = document.createElement("output");
const title = document.createElement("h1");
title.textContent = "What do you drink?";
document.body.append(title, list, status);

let total = -1;

function show(standing: Standing): void {
  // An answer and a message may cross: votes are never taken back, so the greater total is the newer.
  if (standing.total < total) return;
  total = standing.total;
  list.replaceChildren(
    ...Object.entries(standing.count).map(([choice, count]) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.textContent = choice;
      button.onclick = async () => show(await votes.post({ body: { choice } }));
      const meter = document.createElement("meter");
      meter.max = Math.max(standing.total, 1);
      meter.value = count;
      item.append(button, meter, ` ${count}`);
      return item;
    }),
  );
}

client.subscribe<Standing>("poll", {
  onMessage: ({ message }) => show(message),
  onGap: async () => show(await results.get()),
  onStatus: async (now) => {
    status.textContent = now;
    // Asked for once the stream is open, so that no vote falls between the two.
    if (now === "open") show(await results.get());
  },
});
