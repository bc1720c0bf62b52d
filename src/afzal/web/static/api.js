// Requests to the server. A write is sent again, with the same id, until the server confirms that it is on disk.

export const TOKEN = location.pathname.split("/")[2];
const WAITS = [300, 1000, 2000, 4000, 8000], PATIENCE = 15_000;

// The id of this tab. sessionStorage holds it only from one page of the tab to the next (a reload): a browser that
// duplicates a tab copies sessionStorage, and the copy must not pass for this tab.
export const tab = sessionStorage.afzalTab ?? newId();
sessionStorage.removeItem("afzalTab");
addEventListener("pagehide", () => { sessionStorage.afzalTab = tab; });
addEventListener("pageshow", (event) => { if (event.persisted) sessionStorage.removeItem("afzalTab"); });

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class RequestError extends Error {
  constructor(status, reply) {
    super(reply.message ?? `the server replied with status ${status}`);
    this.status = status;
    this.code = reply.error ?? "";
  }
}

export async function get(path) {
  return readReply(await withTimeout((signal) => fetch(path, { headers: { "X-Afzal-Token": TOKEN }, signal })));
}

// The raw response, for a streamed reply; throws RequestError.
export async function send(path, body, signal) {
  const headers = { "X-Afzal-Token": TOKEN, "Content-Type": "application/json" };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) await readReply(response);
  return response;
}

// The bytes of a file.
export async function upload(path, file) {
  const headers = { "X-Afzal-Token": TOKEN, "Content-Type": "application/octet-stream" };
  return readReply(await fetch(path, { method: "POST", headers, body: file }));
}

export const post = async (path, body) => readReply(await send(path, body));

// If the reply's headers do not arrive in time, the server counts as unreachable: it hangs, or the network lost the
// request. The reply's body may take as long as it needs.
async function withTimeout(ask) {
  const control = new AbortController();
  const timer = setTimeout(() => control.abort(), PATIENCE);
  try {
    return await ask(control.signal);
  } finally {
    clearTimeout(timer);
  }
}

// Calls onTrouble(reason) at each failure, and onTrouble(null) once the request goes through.
export async function persist(path, body, onTrouble) {
  for (let attempt = 0; ; attempt++) {
    try {
      const reply = await readReply(await withTimeout((signal) => send(path, { ...body, tab }, signal)));
      onTrouble(null);
      return reply;
    } catch (error) {
      if (error instanceof RequestError && error.status < 500) {
        onTrouble(null);
        throw error;
      }
      onTrouble(error instanceof RequestError ? error.message : "offline");
      await pause(WAITS[Math.min(attempt, WAITS.length - 1)]);
    }
  }
}

export function leave() {
  const headers = { "X-Afzal-Token": TOKEN, "Content-Type": "application/json" };
  fetch("/api/leave", { method: "POST", keepalive: true, headers, body: JSON.stringify({ tab }) }).catch(() => {});
}

async function readReply(response) {
  const reply = response.headers.get("Content-Type")?.startsWith("application/json") ? await response.json() : {};
  if (!response.ok) throw new RequestError(response.status, reply);
  return reply;
}

function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    addEventListener("online", done);
    function done() {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    }
  });
}
