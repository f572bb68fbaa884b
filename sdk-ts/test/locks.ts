type Mode = "exclusive" | "shared";
interface Waiting {
  readonly mode: Mode;
  readonly run: () => void;
}

/** Web Locks for tests, since Node 20 has none: first come, first served, by name. */
export class Locks {
  readonly #held = new Map<string, { mode: Mode; count: number }>();
  readonly #waiting = new Map<string, Waiting[]>();

  request(name: string, ...rest: unknown[]): Promise<unknown> {
    const run = rest.pop() as () => unknown;
    const { mode = "exclusive", signal } = (rest[0] ?? {}) as { mode?: Mode; signal?: AbortSignal };
    return new Promise((resolve, reject) => {
      const start = () => {
        void Promise.resolve()
          .then(run)
          .then(resolve, reject)
          .finally(() => this.#release(name));
      };
      const waiting = { mode, run: start };
      signal?.addEventListener("abort", () => {
        const queue = this.#waiting.get(name) ?? [];
        if (!queue.includes(waiting)) return;
        this.#waiting.set(
          name,
          queue.filter((other) => other !== waiting),
        );
        reject(signal.reason as Error);
      });
      this.#waiting.set(name, [...(this.#waiting.get(name) ?? []), waiting]);
      this.#next(name);
    });
  }

  #release(name: string): void {
    const held = this.#held.get(name);
    if (held && --held.count === 0) this.#held.delete(name);
    this.#next(name);
  }

  #next(name: string): void {
    const queue = this.#waiting.get(name) ?? [];
    const [first] = queue;
    const held = this.#held.get(name);
    if (!first || (held && !(held.mode === "shared" && first.mode === "shared"))) return;
    queue.shift();
    this.#held.set(name, { mode: first.mode, count: (held?.count ?? 0) + 1 });
    first.run();
    this.#next(name);
  }
}
