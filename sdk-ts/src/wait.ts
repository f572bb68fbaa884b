import { TimeoutError } from "./errors.js";

/** How pauses grow. */
export interface Backoff {
  /** The longest first pause, in milliseconds. */
  readonly baseMs: number;
  /** The longest pause of all, in milliseconds. */
  readonly maxMs: number;
}

/**
 * The pause before attempt `failures + 1`, in milliseconds: between half and all of what doubles
 * with each failure, so that clients that failed together don't come back together.
 */
export function backoffMs(failures: number, { baseMs, maxMs }: Backoff): number {
  const most = Math.min(maxMs, baseMs * 2 ** Math.min(failures - 1, 30));
  return most * (0.5 + Math.random() / 2);
}

/** What a longer pause would overflow, and so end at once. */
export const TIMER_MAX_MS = 2 ** 31 - 1;

/** Wait; reject with the signal's reason as soon as it is aborted. */
export function wait(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      if (signal.aborted) reject(signal.reason as Error);
      else resolve();
    };
    const timer = setTimeout(done, Math.min(ms, TIMER_MAX_MS));
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
}

/** A controller that a signal aborts too, until `release` is called. */
export interface Linked {
  readonly signal: AbortSignal;
  abort(reason: unknown): void;
  release(): void;
}

/**
 * A controller that ends when `outer` does. Unlike with `AbortSignal.any`, which some platforms
 * lack, a signal that lives long keeps nothing of what it was linked with.
 */
export function linked(outer: AbortSignal | undefined): Linked {
  const inner = new AbortController();
  const abort = () => inner.abort(outer?.reason);
  outer?.addEventListener("abort", abort);
  if (outer?.aborted) abort();
  return {
    signal: inner.signal,
    abort: (reason) => inner.abort(reason),
    release: () => outer?.removeEventListener("abort", abort),
  };
}

/** What `run` comes to, unless the signal is aborted first, or it takes longer than `ms`, where that is not 0. */
export async function within<T>(
  run: () => T | Promise<T>,
  outer: AbortSignal | undefined,
  ms = 0,
  late?: string,
): Promise<T> {
  const ending = linked(outer);
  const { signal } = ending;
  signal.throwIfAborted();
  const timer = endAfter(ms, ending, () => new TimeoutError(late));
  const ended = new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason as Error));
  });
  try {
    return await Promise.race([run(), ended]);
  } finally {
    clearTimeout(timer);
    ending.release();
  }
}

/** Abort after a time, unless it is 0; what it answers is for `clearTimeout`. */
export function endAfter(ms: number, ending: Linked, error: () => Error): ReturnType<typeof setTimeout> | undefined {
  return ms ? setTimeout(() => ending.abort(error()), ms) : undefined;
}
