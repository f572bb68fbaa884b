import type { SchemaIssue } from "./schema.js";

/** What every error of this package is. */
export class PicloudError extends Error {
  override name = "PicloudError";
}

/** The problems that PiCloud itself answers with; a script may answer with others. */
export type ProblemName =
  | "app_deleted"
  | "body_too_large"
  | "forbidden"
  | "fuel_used_up"
  | "headers_too_large"
  | "idempotency_answer_not_kept"
  | "idempotency_in_progress"
  | "idempotency_key_reused"
  | "internal"
  | "invalid_request"
  | "malformed_request"
  | "method_not_allowed"
  | "not_found"
  | "overloaded"
  | "script_failed"
  | "timed_out"
  | "too_many_attempts"
  | "too_many_replays"
  | "too_many_streams"
  | "too_slow"
  | "unauthorized"
  | "unavailable"
  | "unsupported_media_type"
  | "uri_too_long"
  | "wrong_password"
  | (string & {});

const PROBLEM = "urn:picloud:problem:";

/** An answer with a status of 400 or above. */
export class ProblemError extends PicloudError {
  override name = "ProblemError";
  /** The HTTP status. */
  readonly status: number;
  /** The problem's URI; `about:blank` when the answer was no `application/problem+json`. */
  readonly type: string;
  /** A short text for people. */
  readonly title: string;
  /** What is wrong this time, when the answer says it. */
  readonly detail: string | undefined;
  /** The field of the request that is wrong, when it is one. */
  readonly field: string | undefined;
  /** The execution that answered, when there was one: `picloud logs` finds it. */
  readonly executionId: string | undefined;
  /** How long the server asks to wait, in milliseconds. */
  readonly retryAfterMs: number | undefined;
  /** The whole body: what JSON holds, or text. */
  readonly body: unknown;
  /** The answer, its body read. */
  readonly response: Response;

  /** Make one of an answer and what its body holds. */
  constructor(response: Response, body: unknown) {
    const members = (typeof body === "object" && body !== null ? body : {}) as Record<string, unknown>;
    const text = (name: string) => {
      const value = members[name];
      return typeof value === "string" ? value : undefined;
    };
    const title = text("title") ?? `HTTP ${response.status}`;
    const detail = text("detail");
    super(detail ?? title);
    this.status = response.status;
    this.type = text("type") ?? "about:blank";
    this.title = title;
    this.detail = detail;
    this.field = text("field");
    // A script's own answer says it in a header only.
    this.executionId = text("execution_id") ?? response.headers.get("x-execution-id") ?? undefined;
    this.retryAfterMs = retryAfterMs(response.headers.get("retry-after"));
    this.body = body;
    this.response = response;
  }

  /** The name of PiCloud's own problem, `not_found` say; undefined when it is somebody else's. */
  get problem(): ProblemName | undefined {
    return this.type.startsWith(PROBLEM) ? this.type.slice(PROBLEM.length) : undefined;
  }
}

/** The server could not be reached, or left in the middle; `cause` has what was thrown. */
export class ConnectionError extends PicloudError {
  override name = "ConnectionError";
}

/** The time that the call was given is over. */
export class TimeoutError extends PicloudError {
  override name = "TimeoutError";
}

/** A request or an answer that its schema refuses. */
export class ValidationError extends PicloudError {
  override name = "ValidationError";
  /** What was checked. */
  readonly of: "body" | "query" | "response" | "message";
  /** What the schema says is wrong. */
  readonly issues: readonly SchemaIssue[];

  /** Make one of what a schema said. */
  constructor(of: ValidationError["of"], issues: readonly SchemaIssue[]) {
    const lines = issues.map(({ path, message }) => {
      const at = path?.map((part) => String(typeof part === "object" ? part.key : part)).join(".");
      return at ? `${at}: ${message}` : message;
    });
    super(`invalid ${of}: ${lines.join("; ")}`);
    this.of = of;
    this.issues = issues;
  }
}

/** `Retry-After` as milliseconds from now; it holds seconds or a date. */
function retryAfterMs(value: string | null): number | undefined {
  if (value === null) return undefined;
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.max(0, ms);
}
