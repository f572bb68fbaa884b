// What the peers' queues do on the Postgres of PEER_URL: jobs enqueued one by one with 20 in
// flight and done, per second; and a backlog of PEER_BACKLOG drained, per second. Their handlers do
// nothing, in the worker's own process. Prints one JSON object.

import { makeWorkerUtils, run, Logger } from "graphile-worker";
import { PgBoss } from "pg-boss";

const url = process.env.PEER_URL;
const seconds = Number(process.env.PEER_SECONDS ?? 5);
const IN_FLIGHT = 20;
const BACKLOG = Number(process.env.PEER_BACKLOG ?? 20_000);

/** Enqueue for some seconds; answers how many it were. */
async function enqueue(one) {
  const until = performance.now() + seconds * 1000;
  let count = 0;
  const loop = async () => {
    while (performance.now() < until) {
      await one();
      count += 1;
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, loop));
  return count;
}

async function until(isDone) {
  while (!isDone()) {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

const rate = (count, started) => Math.round((count / (performance.now() - started)) * 1000);

async function graphile() {
  let done = 0;
  const taskList = { nothing: async () => void (done += 1) };
  const logger = new Logger(() => () => {});
  const utils = await makeWorkerUtils({ connectionString: url, logger });
  await utils.migrate();
  const start = (options) =>
    run({ connectionString: url, taskList, logger, noHandleSignals: true, maxPoolSize: 20, ...options });

  let runner = await start({ concurrency: IN_FLIGHT });
  let started = performance.now();
  const sent = await enqueue(() => utils.addJob("nothing", {}));
  await until(() => done >= sent);
  const endToEnd = rate(done, started);
  await runner.stop();

  done = 0;
  await utils.withPgClient((client) =>
    client.query(
      "select graphile_worker.add_jobs(array(select json_populate_record(null::graphile_worker.job_spec, json_build_object('identifier', 'nothing', 'payload', '{}'::json)) from generate_series(1, $1)))",
      [BACKLOG],
    ),
  );
  started = performance.now();
  runner = await start({
    concurrency: IN_FLIGHT,
    preset: { worker: { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
  });
  await until(() => done >= BACKLOG);
  const drain = rate(done, started);
  await runner.stop();
  await utils.release();
  return { endToEnd, drain };
}

async function boss() {
  const queue = new PgBoss({ connectionString: url, max: 20 });
  queue.on("error", () => {});
  await queue.start();
  await queue.createQueue("nothing");
  let done = 0;
  // Its worker looks twice a second at most, unless it is told that there is something.
  const options = { batchSize: 100, pollingIntervalSeconds: 0.5 };
  const worker = await queue.work("nothing", options, async (jobs) => void (done += jobs.length));
  let started = performance.now();
  const sent = await enqueue(async () => {
    await queue.send("nothing", {});
    queue.notifyWorker(worker);
  });
  while (done < sent) {
    queue.notifyWorker(worker);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  const endToEnd = rate(done, started);
  await queue.offWork("nothing");

  // A backlog it drains faster by hand than by its worker.
  const fetchUntil = async (isDone) => {
    while (!isDone()) {
      const jobs = await queue.fetch("nothing", { batchSize: 100 });
      if (jobs.length > 0) {
        await queue.complete("nothing", jobs.map((job) => job.id));
        done += jobs.length;
      }
    }
  };

  done = 0;
  for (let n = 0; n < BACKLOG; n += 1000) {
    await queue.insert("nothing", Array.from({ length: 1000 }, () => ({ data: {} })));
  }
  started = performance.now();
  await Promise.all(Array.from({ length: 4 }, () => fetchUntil(() => done >= BACKLOG)));
  const drain = rate(done, started);
  await queue.stop({ graceful: false });
  return { endToEnd, drain };
}

const which = { "graphile-worker": graphile, "pg-boss": boss }[process.argv[2]];
console.log(JSON.stringify(await which()));
process.exit(0);
