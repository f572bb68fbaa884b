import { PicloudError, ProblemError } from "./errors.js";
import { send, type Wire } from "./send.js";
import { memoryStorage, type SessionStorage } from "./storage.js";
import { within } from "./wait.js";

/** Somebody who is signed in to the app. */
export interface Session {
  /** Goes with every call, as `Authorization: Bearer`. */
  readonly token: string;
  /** When the token ends, in milliseconds since 1970; never, as far as we know, when left out. */
  readonly expiresAt?: number | undefined;
  /** What a new token is got with; without one, a session ends with its token. */
  readonly refreshToken?: string | undefined;
  /** The whole answer that the session came from: the user's name, say. */
  readonly answer?: unknown;
}

/** Where the app's own sign-in is. */
export interface AuthOptions {
  /** Takes the credentials by POST; `/auth/login` unless told. */
  loginPath?: string;
  /** Is told by POST that the session ends; `/auth/logout` unless told, null when there is none. */
  logoutPath?: string | null;
  /** Takes `{"refresh_token"}` by POST and answers as the login does; `/auth/refresh` unless told. */
  refreshPath?: string;
  /** Where the session is kept; in memory unless told, so that it ends with the page. */
  storage?: SessionStorage;
  /**
   * Reads a session out of the answer of the login. Unless told, it takes `token`, `refresh_token` and
   * one of `expires_at` (RFC 3339) and `expires_in` (seconds).
   */
  readSession?: (answer: unknown) => Session;
}

/** A token that ends sooner than this is renewed before it is used. */
const MARGIN_MS = 30_000;

/** How long a call waits for a new token while the old one still does. */
const PATIENCE_MS = 5000;

/** How long a renewal may take where calls may take for ever: all of them wait for it. */
const RENEWAL_MS = 30_000;

/** Signs in to the app through its own endpoints, and keeps the token. */
export class Auth {
  readonly #wire: Wire;
  readonly #options: AuthOptions;
  readonly #storage: SessionStorage;
  readonly #listeners = new Set<(session: Session | null) => void>();
  /** What the storage holds, as text, so that one look tells whether it changed. */
  #kept: string | null = null;
  #refreshing: Promise<Session | null> | undefined;

  /** @internal */
  constructor(wire: Wire, options: AuthOptions = {}) {
    // Signing in must not wait for a token.
    this.#wire = { ...wire };
    this.#options = options;
    this.#storage = options.storage ?? memoryStorage();
    this.#storage.watch?.(() => void this.session());
  }

  /** Sign in; the credentials are what the app's endpoint takes. */
  async login(credentials: unknown): Promise<Session> {
    const session = await this.#ask(this.#options.loginPath ?? "/auth/login", credentials);
    await this.setSession(session);
    return session;
  }

  /** Sign out here, and tell the app; a server that cannot be reached does not keep anybody signed in. */
  async logout(): Promise<void> {
    const session = await this.session();
    await this.setSession(null);
    const { logoutPath: path = "/auth/logout" } = this.#options;
    if (!session || path === null) return;
    const headers = { authorization: `Bearer ${session.token}` };
    await send(this.#wire, { method: "POST", path }, { headers });
  }

  /** A token that holds, renewed if need be; null when nobody is signed in. Calls at once share one renewal. */
  async token(): Promise<string | null> {
    const session = await this.session();
    if (!session) return null;
    const leftMs = (session.expiresAt ?? Infinity) - Date.now();
    if (leftMs < MARGIN_MS && session.refreshToken) {
      try {
        const renewed = await within(() => this.#refresh(session.token), undefined, leftMs > 0 ? PATIENCE_MS : 0);
        return renewed?.token ?? null;
      } catch (error) {
        // The old one may still do for this call.
        if (leftMs <= 0) throw error;
      }
    }
    if (leftMs > 0) return session.token;
    await this.setSession(null);
    return null;
  }

  /** Who is signed in, as far as it is known here. */
  async session(): Promise<Session | null> {
    const kept = await this.#storage.load();
    this.#is(kept);
    return this.#parse();
  }

  /** Sign in with a session that came from elsewhere, or out with null. */
  async setSession(session: Session | null): Promise<void> {
    const text = session && JSON.stringify(session);
    await this.#storage.save(text);
    this.#is(text);
  }

  /** Be told when somebody signs in or out, or gets a new token, in another tab too; answers how to stop. */
  onChange(listener: (session: Session | null) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Replace a token that was refused; says whether there is another now. @internal */
  async renew(refused: string): Promise<boolean> {
    const session = await this.session();
    if (!session || session.token !== refused) return session !== null;
    return session.refreshToken ? (await this.#refresh(refused)) !== null : false;
  }

  #refresh(old: string): Promise<Session | null> {
    const alone = this.#storage.alone ?? ((run) => run());
    this.#refreshing ??= alone(async () => {
      const session = await this.session();
      // Another tab was faster.
      if (!session?.refreshToken || session.token !== old) return session;
      try {
        const path = this.#options.refreshPath ?? "/auth/refresh";
        const timeoutMs = this.#wire.timeoutMs || RENEWAL_MS;
        const renewed = await this.#ask(path, { refresh_token: session.refreshToken }, timeoutMs);
        await this.setSession({ refreshToken: session.refreshToken, ...renewed });
      } catch (error) {
        if (!(error instanceof ProblemError) || error.status >= 500 || error.status === 429) throw error;
        await this.setSession(null);
      }
      return this.session();
    }).finally(() => (this.#refreshing = undefined));
    return this.#refreshing;
  }

  async #ask(path: string, body: unknown, timeoutMs?: number): Promise<Session> {
    const { body: answer } = await send(this.#wire, { method: "POST", path, body }, { timeoutMs });
    return (this.#options.readSession ?? readSession)(answer);
  }

  #parse(): Session | null {
    try {
      return this.#kept ? (JSON.parse(this.#kept) as Session) : null;
    } catch {
      return null;
    }
  }

  #is(kept: string | null): void {
    if (kept === this.#kept) return;
    this.#kept = kept;
    const session = this.#parse();
    for (const listener of this.#listeners) listener(session);
  }
}

function readSession(answer: unknown): Session {
  const body = (answer ?? {}) as Record<string, unknown>;
  if (typeof body.token !== "string") {
    throw new PicloudError("the answer has no `token`: say with `readSession` where it is");
  }
  const { token, refresh_token: refreshToken, expires_at: at, expires_in: seconds } = body;
  const inMs = typeof seconds === "number" ? Date.now() + seconds * 1000 : undefined;
  const expiresAt = typeof at === "string" ? Date.parse(at) : inMs;
  return {
    token,
    ...(expiresAt === undefined ? {} : { expiresAt }),
    ...(typeof refreshToken === "string" ? { refreshToken } : {}),
    answer,
  };
}
