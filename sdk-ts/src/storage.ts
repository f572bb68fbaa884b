import { platform } from "./platform.js";

/** Where a session is kept, as text. */
export interface SessionStorage {
  /** What is kept, or null. */
  load(): string | null | Promise<string | null>;
  /** Keep this, or nothing. */
  save(text: string | null): void | Promise<void>;
  /** Call back when somebody else, another tab say, may have changed it. */
  watch?(changed: () => void): void;
  /** Run this while no other tab does, where they share what is kept. */
  readonly alone?: <T>(run: () => Promise<T>) => Promise<T>;
}

/** Keeps the session while the page, or the process, lives. */
export function memoryStorage(): SessionStorage {
  let kept: string | null = null;
  return { load: () => kept, save: (text) => void (kept = text) };
}

/** Keeps the session in `localStorage`: all tabs of the origin share it, until somebody signs out. */
export function localStorageStorage(key = "picloud-session"): SessionStorage {
  return {
    load: () => localStorage.getItem(key),
    save: (text) => (text === null ? localStorage.removeItem(key) : localStorage.setItem(key, text)),
    // Two tabs with one refresh token would sign each other out.
    alone: (run) => platform.navigator?.locks?.request(key, run) ?? run(),
    watch: (changed) => {
      addEventListener("storage", (event) => {
        // Null: all of it was cleared.
        if (event.key === key || event.key === null) changed();
      });
    },
  };
}

/** What a cookie is set with. */
export interface CookieOptions {
  /** Its name; `picloud-session` unless told. */
  name?: string;
  /** How long it lasts, in seconds; until the browser ends, unless told. */
  maxAgeSeconds?: number;
  /** The domain, for subdomains to share it. */
  domain?: string;
}

/** Keeps the session in a cookie that the page can read: for apps whose server reads it, too. */
export function cookieStorage({ name = "picloud-session", maxAgeSeconds, domain }: CookieOptions = {}): SessionStorage {
  const attributes = [
    "path=/",
    "samesite=lax",
    ...(platform.location?.protocol === "https:" ? ["secure"] : []),
    ...(domain ? [`domain=${domain}`] : []),
  ];
  return {
    load: () => {
      const found = document.cookie.split("; ").find((cookie) => cookie.startsWith(`${name}=`));
      return found ? decodeURIComponent(found.slice(name.length + 1)) : null;
    },
    save: (text) => {
      const age = text === null ? 0 : maxAgeSeconds;
      const parts = [`${name}=${encodeURIComponent(text ?? "")}`, ...attributes];
      document.cookie = [...parts, ...(age === undefined ? [] : [`max-age=${age}`])].join("; ");
    },
  };
}
