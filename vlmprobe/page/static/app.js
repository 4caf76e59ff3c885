// The page: a conversation with a model, one question at a time.

import { about, ask, share } from "./api.js";
import { composer, start } from "./composer.js";
import { byId, h, tell } from "./dom.js";
import { again, opened, send } from "./images.js";
import { savedList } from "./saved.js";
import { lang, words } from "./strings.js";
import { addVersion, dropVersion, keysOf, specOf, Talk, textOf } from "./talk.js";
import { turnView } from "./turn.js";

let talk = new Talk(), running = null, lacks = {}, listing = false;
const NEW = ["branch", "regions", "layers", "samples"]; // what needs the prompt again
const views = new Map(); // turn -> its view
document.documentElement.lang = lang;

const write = composer(byId("composer"), { onAsk: asked, onStop: () => running?.stop.abort() });
const fresh = h("button", { type: "button", class: "quiet", onclick: restart }, words.newTalk);
const saved = h("button", { type: "button", class: "quiet", disabled: true, onclick: save }, words.share);
byId("acts").append(fresh, saved);
start(byId("start"), async (blob, name) => {
  const { key } = await send(blob, name);
  if (!talk.next) answer(talk.ask({ text: words.describe, images: [key], kind: "answer", texts: [], options: {} }));
}).catch(fail);

function asked(question) {
  if (talk.path().some((turn) => turn.why)) restart(); // nothing can be asked after an answer whose prompt is not known
  answer(talk.ask(question));
}

// An answer that was saved before, shown as if it had been asked.
function open({ key, document: found, images, why }) {
  restart();
  const scores = Boolean(found.candidates);
  const turn = talk.ask({
    text: String(found.question || ""), images: images.map(opened), options: {}, why,
    kind: scores ? "candidates" : "answer", texts: scores ? found.candidates.map((each) => each.text) : [],
  });
  Object.assign(addVersion(turn), { document: found, key });
  draw();
  views.get(turn).root.scrollIntoView({ block: "start", behavior: "instant" });
}

function fail(error) {
  byId("state").textContent = error.message;
}

// Bring the screen to the path that is walked.
function draw() {
  const path = talk.path();
  byId("saved").hidden = path.length > 0;
  byId("start").hidden = path.length > 0 || listing;
  for (const [turn, view] of views) {
    if (path.includes(turn)) continue;
    view.destroy();
    views.delete(turn);
  }
  for (const [place, turn] of path.entries()) {
    if (views.has(turn)) continue;
    const view = turnView(turn, {
      lacks: turn.why ? Object.fromEntries(NEW.map((name) => [name, turn.why])) : lacks, legend: place === 0,
      onBranch: (version, index, alternative) => branch(turn, version, index, alternative),
      onSwitch: (version) => walk(turn, version),
    });
    views.set(turn, view);
    byId("talk").append(view.root);
    if (turn.current?.document) view.show(turn.current);
  }
  saved.disabled = !path.some((turn) => turn.current?.key);
}

function walk(turn, version) {
  if (running || turn.current === version) return;
  turn.current = version;
  views.get(turn).show(version);
  draw();
}

async function branch(turn, version, index, alternative) {
  if (running) {
    running.stop.abort();
    await running.ended;
  }
  if (!version.document || index >= version.document.output.length) return;
  await answer(turn, { version, index, alternative });
}

// Ask for an answer to a turn, a further one if it branches from another.
async function answer(turn, from = null) {
  const version = addVersion(turn, from), stop = new AbortController();
  let ended;
  running = { stop, ended: new Promise((resolve) => { ended = resolve; }) };
  write.asking = true;
  draw();
  const view = views.get(turn), spec = specOf(turn, version);
  view.begin(version);
  if (!from) view.root.scrollIntoView({ block: "start", behavior: "instant" });
  const follow = following();
  try {
    const { document: found, key } = await ask(spec, {
      stop: stop.signal,
      resend: () => again(keysOf(spec)),
      on: {
        queue: ({ ahead, loading }) => view.status(loading ? words.opening : words.waiting(ahead)),
        start: () => view.status(""),
        token: (row) => { view.add(row); follow(); },
      },
    });
    Object.assign(version, { document: found, key });
    if (!Object.keys(lacks).length) await status();
    view.show(version);
    if (from) view.focus(from.index);
    tell(`${words.answered}: ${textOf(found).slice(0, 500)}`);
  } catch (error) {
    dropVersion(turn, version);
    if (turn.current) {
      view.show(turn.current);
      view.status(error.message);
    } else {
      talk.drop(turn);
      write.restore(turn, error.type === "Stopped" ? words.stopped : error.message);
    }
  } finally {
    running = null;
    write.asking = false;
    draw();
    ended();
  }
}

// Keeps the end of a growing answer in sight for who was looking at it.
function following() {
  const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 40;
  let at = atEnd();
  return () => {
    if (at) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    at = atEnd();
  };
}

function restart() {
  running?.stop.abort();
  const first = talk.path()[0], images = first && !first.why ? first.images : [];
  talk = new Talk();
  draw();
  write.use(images);
  write.focus();
}

async function save() {
  const keys = talk.path().map((turn) => turn.current?.key).filter(Boolean);
  saved.textContent = `${words.sharing} …`;
  try {
    const url = URL.createObjectURL(await share(keys));
    const link = h("a", { href: url, download: "vlmprobe.html" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } catch (error) {
    tell(error.message);
    fail(error);
  } finally {
    saved.textContent = words.share;
  }
}

// What the model is, and whether it can be asked yet.
async function status() {
  try {
    const told = await about();
    byId("model").textContent = told.model;
    byId("state").textContent = told.error ? `${words.failed}: ${told.error.message}` : told.state === "ready" ? "" : `${words[told.state]} …`;
    document.title = `${told.model} · vlmprobe`;
    if (told.lacks) {
      Object.assign(lacks, told.lacks);
      write.lacks = lacks;
    }
    if (told.saved && !listing) {
      listing = true;
      draw();
      await savedList(byId("saved"), open);
    }
    if (told.state === "loading") setTimeout(status, 1000);
  } catch (error) {
    fail(error);
  }
}

status();
