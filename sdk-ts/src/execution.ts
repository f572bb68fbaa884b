import { ConnectionError, PicloudError } from "./errors.js";
import { pauseBefore, type Wire } from "./send.js";
import { readStream } from "./stream.js";
import { wait, within } from "./wait.js";

/** A line that a script logged. */
export interface LogLine {
  readonly at: string;
  readonly level: string;
  readonly message: string;
  readonly fields: Record<string, unknown> | null;
}

/** What became of an execution, as `GET /api/v1/executions/{id}` says it. */
export interface Outcome {
  readonly id: string;
  /** `answered` when all went well; the others are in docs/api.md. */
  readonly outcome: string;
  readonly duration_us: number;
  readonly fuel: number;
  readonly error: { readonly message: string; readonly line: number | null; readonly column: number | null } | null;
  readonly [member: string]: unknown;
}

/** How to wait for an execution. */
export interface WaitOptions {
  /** A sign-in of the instance, or an API key, that may read the app's logs; the client's own token unless told. */
  token?: string;
  /** Takes each line that the script logs. */
  onLog?: (line: LogLine) => void;
  /** Stops waiting; `AbortSignal.timeout(60_000)` after a minute. */
  signal?: AbortSignal;
}

/** What an async route answers at once: an execution that runs, or will. */
export class Execution {
  /** Its id. */
  readonly id: string;
  /** When the server took it, RFC 3339. */
  readonly acceptedAt: string;
  readonly #wire: Wire;

  /** @internal */
  constructor(wire: Wire, id: string, acceptedAt: string) {
    this.#wire = wire;
    this.id = id;
    this.acceptedAt = acceptedAt;
  }

  /** Wait until it has ended: its first attempt, where the delivery is tried again. */
  async wait({ token, onLog, signal = new AbortController().signal }: WaitOptions = {}): Promise<Outcome> {
    let lastEventId: string | undefined;
    let outcome: Outcome | undefined;
    for (let failures = 1; ; failures++) {
      let lost: unknown = new ConnectionError("the server stopped");
      try {
        await readStream(this.#wire, {
          path: `/api/v1/executions/${this.id}/events`,
          token: token ?? (await within(() => this.#wire.auth?.token(), signal)),
          lastEventId,
          signal,
          onEvent: ({ event, id, data }) => {
            lastEventId = id ?? lastEventId;
            failures = 1;
            if (event === "log") onLog?.(data as unknown as LogLine);
            if (event === "outcome") outcome = data as unknown as Outcome;
          },
          onUnreadable: (event, id) => {
            if (event === "outcome") throw new PicloudError("the outcome cannot be read");
            lastEventId = id ?? lastEventId;
          },
        });
      } catch (error) {
        lost = error;
      }
      if (outcome) return outcome;
      signal.throwIfAborted();
      const pauseMs = pauseBefore(lost, failures);
      if (pauseMs === undefined) throw lost;
      await wait(pauseMs, signal);
    }
  }
}
