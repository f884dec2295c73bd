// Requests. The token is in this module's memory, and nowhere else: a reload asks for it again.

let token = null;
let ended = new AbortController();

/** An error of the API, with its status; 0: there was no response. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Begins a session. `null`: the listener needs no token. */
export function begin(value) {
  token = value;
  ended = new AbortController();
}

/** Forgets the token, and ends all requests. */
export function end() {
  token = null;
  ended.abort();
}

/** Aborted when the session ends. */
export function session() {
  return ended.signal;
}

/** Sends a request. Throws an [`ApiError`] unless it succeeds. */
export async function request(method, path, signal) {
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  const signals = signal ? AbortSignal.any([signal, ended.signal]) : ended.signal;
  let response;
  try {
    response = await fetch(path, { method, headers, signal: signals, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (signals.aborted) throw error;
    throw new ApiError(0, "sliced does not answer");
  }
  if (response.ok) return response;
  let message = `status ${response.status}`;
  try {
    const body = await response.json();
    const parts = [body.error, ...(body.problems ?? [])].filter((part) => typeof part === "string");
    message = parts.join("; ") || message;
  } catch {
    // The status is sufficient.
  }
  throw new ApiError(response.status, message);
}

/** The lines of a response, as they come. */
export async function* lines(response) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of chunks(response)) {
    const parts = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

/** The bytes of a response, as they come. A connection that breaks ends them, too. */
export async function* chunks(response) {
  const reader = response.body.getReader();
  try {
    for (;;) {
      let result;
      try {
        result = await reader.read();
      } catch {
        return;
      }
      if (result.done) return;
      yield result.value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Opens a WebSocket. It cannot have headers, so the token is a subprotocol, as in Kubernetes; the server selects the other one. */
export function socket(path) {
  const protocols = ["v1.slice"];
  if (token !== null) {
    const encoded = btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    protocols.push(`base64url.bearer.authorization.slice.${encoded}`);
  }
  const url = new URL(path, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const opened = new WebSocket(url, protocols);
  opened.binaryType = "arraybuffer";
  ended.signal.addEventListener("abort", () => opened.close());
  return opened;
}

/** Waits; ends early when the session ends, or when the network is back. */
export function pause(milliseconds, signal = ended.signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}
