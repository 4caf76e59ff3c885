// The page: a question, and one conversation or several side by side that it is asked in.

import { about, share } from "./api.js";
import { composer, start } from "./composer.js";
import { byId, h, tell } from "./dom.js";
import { known, send } from "./images.js";
import { Lane } from "./lane.js";
import { savedList } from "./saved.js";
import { lang, words } from "./strings.js";

let models = [], lacks = [], lanes = [], listing = false;
document.documentElement.lang = lang;

const write = composer(byId("composer"), { onAsk: asked, onStop: () => lanes.forEach((lane) => lane.running?.stop.abort()) });
const saved = h("button", { type: "button", class: "quiet", disabled: true, onclick: save }, words.share);
byId("acts").append(h("button", { type: "button", class: "quiet", onclick: restart }, words.newTalk), saved);
start(byId("start"), async (blob, name) => {
  const { key } = await send(blob, name);
  if (!lanes.length) asked({ text: words.describe, images: [key], kind: "answer", texts: [], options: {} });
}).catch(fail);
let first = status();

function fail(error) {
  byId("state").textContent = error.message;
}

function changed() {
  const said = lanes.some((lane) => lane.talk.next);
  byId("saved").hidden = said;
  byId("start").hidden = said || listing;
  saved.disabled = !lanes.some((lane) => lane.keys.length);
  write.asking = lanes.some((lane) => lane.running);
  write.begun = said;
}

function lane(model, name) {
  const made = new Lane({ model, name, lacks: lacks[model], known: () => lacks[model].known || status(), changed });
  lanes.push(made);
  byId("talk").append(made.root);
  byId("main").classList.toggle("several", lanes.length > 1);
  return made;
}

// Ask in every conversation; the first question says how many there are: one for each model, and if wanted each image.
async function asked(question) {
  await first;
  if (lanes.some((each) => each.talk.path().some((turn) => turn.why))) restart(); // its prompt is not known
  let groups = lanes.map(() => question.images);
  if (!lanes.some((each) => each.talk.next)) {
    clear();
    const apart = question.apart ? question.images.map((key) => [key]) : [question.images];
    groups = models.flatMap(() => apart);
    models.forEach((name, model) => apart.forEach(([key], place) => {
      const image = question.apart ? known(key).name || `${words.image} ${place + 1}` : "";
      lane(model, [models.length > 1 ? name : "", image].filter(Boolean).join(" · "));
    }));
  }
  const follow = lanes.length === 1 ? following() : undefined;
  const failed = await Promise.all(lanes.map((each, place) => each.ask({ ...question, images: groups[place] }, follow)));
  if (failed.every(Boolean)) write.restore(question, failed[0].type === "Stopped" ? words.stopped : failed[0].message);
  else failed.forEach((error, place) => { if (error) lanes[place].wrong.textContent = error.message; });
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

function clear() {
  for (const each of lanes) {
    each.running?.stop.abort();
    each.root.remove();
  }
  lanes = [];
  byId("main").classList.remove("several");
}

function restart() {
  const turns = lanes.map((each) => each.talk.next).filter((turn) => turn && !turn.why);
  clear();
  changed();
  write.use([...new Set(turns.flatMap((turn) => turn.images))]);
  write.focus();
}

async function save() {
  saved.textContent = `${words.sharing} …`;
  try {
    const url = URL.createObjectURL(await share(lanes.flatMap((each) => each.keys)));
    h("a", { href: url, download: "vlmprobe.html" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } catch (error) {
    tell(error.message);
    fail(error);
  } finally {
    saved.textContent = words.share;
  }
}

// What the models are, and whether they can be asked yet.
async function status() {
  try {
    const told = await about();
    models = told.models;
    for (const place of models.keys()) lacks[place] = Object.assign(lacks[place] || {}, told.lacks[place], told.lacks.length ? { known: true } : {});
    byId("model").textContent = models.join(", ");
    byId("state").textContent = told.error ? `${words.failed}: ${told.error.message}` : told.state === "ready" ? "" : `${words[told.state]} …`;
    document.title = `${models.join(", ")} · vlmprobe`;
    write.lacks = { score: lacks.map((each) => each.score).find(Boolean) };
    if (told.saved && !listing) {
      listing = true;
      changed();
      await savedList(byId("saved"), (entry) => {
        clear();
        lane(0, "").open(entry);
      });
    }
    if (told.state === "loading") setTimeout(status, 1000);
  } catch (error) {
    fail(error);
  }
}
