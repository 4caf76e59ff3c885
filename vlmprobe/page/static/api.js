// What the page asks of its server. Every address is relative, so that the page also works behind a proxy.

import { words } from "./strings.js";

const POLL = 400; // milliseconds between two looks at the queue: a waiting question holds no connection

export class AskError extends Error {
  constructor({ type, message }) {
    super(message);
    this.type = type;
  }
}

async function call(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AskError({ type: "Gone", message: words.gone });
  }
  if (!reply.ok) {
    const told = await reply.json().catch(() => null);
    throw new AskError(told?.error || { type: "Gone", message: `${words.gone} (${reply.status})` });
  }
  return reply;
}

const post = (path, document) => call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(document) });
const json = async (path) => (await call(path)).json();

export const about = () => json("api/about");
export const samples = () => json("api/samples");
export const sample = async (name) => (await call(`api/samples/${encodeURIComponent(name)}`)).blob();
export const listed = (find, order, start) => json(`api/saved?${new URLSearchParams({ find, order, start })}`);
export const entry = (place) => json(`api/saved/${place}`);
export const addImage = async (file) => (await call("api/images", { method: "POST", body: file })).json();
export const share = async (keys) => (await post("api/share", { keys })).blob();
export const python = async (spec, names) => (await (await post("api/python", { ...spec, names })).json()).code;

// The events of a reply, as [name, data].
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
        const lines = held.slice(0, end).split("\n");
        const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
        if (name) yield [name, JSON.parse(lines.find((line) => line.startsWith("data: ")).slice(6))];
      }
    }
  } catch (error) {
    throw error instanceof SyntaxError ? error : new AskError({ type: "Gone", message: words.gone });
  }
}

const running = new Set();
addEventListener("pagehide", () => { for (const job of running) navigator.sendBeacon(`api/jobs/${job}/stop?leave`); });

// Ask the model. `resend` sends images again that the server has dropped.
// Returns what ends it, as {result} or {panel}; throws an AskError. `on` hears of queue({ahead, loading}), token(row),
// progress({done, of}); `stop` is an AbortSignal that stops the model, which then ends with what it has.
export async function ask(spec, { on = {}, stop, resend } = {}) {
  let told;
  try {
    told = await (await post("api/jobs", spec)).json();
  } catch (error) {
    if (error.type !== "GoneError" || !resend) throw error;
    await resend();
    told = await (await post("api/jobs", spec)).json();
  }
  const job = told.job;
  const halt = () => post(`api/jobs/${job}/stop`, {}).catch(() => {});
  running.add(job);
  stop?.addEventListener("abort", halt);
  if (stop?.aborted) halt();
  try {
    for (;;) {
      const { state, ahead, loading } = await json(`api/jobs/${job}`);
      if (state !== "waiting" && !loading) break;
      on.queue?.({ ahead, loading });
      await new Promise((resolve) => setTimeout(resolve, POLL));
    }
    on.start?.();
    for await (const [name, data] of events(await call(`api/jobs/${job}/events`))) {
      if (name === "error") throw new AskError(data);
      if (name === "result" || name === "panel") return data;
      on[name]?.(data);
    }
    throw new AskError({ type: "Stopped", message: words.stopped });
  } catch (error) {
    if (stop?.aborted && error.type === "GoneError") throw new AskError({ type: "Stopped", message: words.stopped });
    throw error;
  } finally {
    running.delete(job);
    stop?.removeEventListener("abort", halt);
  }
}
