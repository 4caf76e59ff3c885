// One conversation on the screen: with one model, about its own images. Several stand side by side.

import { ask } from "./api.js";
import { h, tell } from "./dom.js";
import { again, opened } from "./images.js";
import { words } from "./strings.js";
import { addVersion, dropVersion, keysOf, specOf, Talk, textOf } from "./talk.js";
import { turnView } from "./turn.js";

const NEW = ["branch", "regions", "layers", "samples"]; // what needs the prompt again

export class Lane {
  // `lacks` is what the model's engine cannot do, or {} while that is not known, which `known()` waits for; `changed(lane)`
  // is called before and after the model is asked, and when other turns are shown.
  constructor({ model, name, lacks, known, changed }) {
    Object.assign(this, { model, lacks, known, changed });
    this.talk = new Talk();
    this.views = new Map(); // turn -> its view
    this.running = null; // {stop, ended} while the model is asked
    this.wrong = h("p", { class: "wrong", role: "alert" });
    this.turns = h("div");
    this.root = h("section", { class: "lane", "aria-label": name || null }, name ? h("h2", { dir: "auto" }, name) : null, this.turns, this.wrong);
  }

  get keys() {
    return this.talk.path().map((turn) => turn.current?.key).filter(Boolean);
  }

  // Bring the screen to the path that is walked.
  draw() {
    const path = this.talk.path();
    for (const [turn, view] of this.views) {
      if (path.includes(turn)) continue;
      view.destroy();
      this.views.delete(turn);
    }
    for (const [place, turn] of path.entries()) {
      if (this.views.has(turn)) continue;
      const view = turnView(turn, {
        lacks: turn.why ? Object.fromEntries(NEW.map((name) => [name, turn.why])) : this.lacks, legend: place === 0,
        onBranch: (version, index, alternative) => this.branch(turn, version, index, alternative),
        onSwitch: (version) => this.walk(turn, version),
      });
      this.views.set(turn, view);
      this.turns.append(view.root);
      if (turn.current?.document) view.show(turn.current);
    }
    this.changed(this);
  }

  walk(turn, version) {
    if (this.running || turn.current === version) return;
    turn.current = version;
    this.views.get(turn).show(version);
    this.draw();
  }

  async branch(turn, version, index, alternative) {
    if (this.running) {
      this.running.stop.abort();
      await this.running.ended;
    }
    if (!version.document || index >= version.document.output.length) return;
    await this.answer(turn, { version, index, alternative });
  }

  // Ask after the last answer. Returns the error if there is no answer.
  ask(question, follow) {
    return this.answer(this.talk.ask({ ...question, model: this.model }), null, follow);
  }

  // Ask for an answer to a turn, a further one if it branches from another.
  async answer(turn, from, follow = () => {}) {
    const version = addVersion(turn, from), stop = new AbortController();
    let ended, failed = null;
    this.running = { stop, ended: new Promise((resolve) => { ended = resolve; }) };
    this.wrong.textContent = "";
    this.draw();
    const view = this.views.get(turn), spec = specOf(turn, version);
    view.begin(version);
    if (!from) view.root.scrollIntoView({ block: "start", behavior: "instant" });
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
      await this.known();
      view.show(version);
      if (from) view.focus(from.index);
      tell(`${words.answered}: ${textOf(found).slice(0, 500)}`);
    } catch (error) {
      failed = error;
      dropVersion(turn, version);
      if (turn.current) {
        view.show(turn.current);
        view.status(error.message);
      } else this.talk.drop(turn);
    }
    this.running = null;
    this.draw();
    ended();
    return failed;
  }

  // Show an answer that was saved before as if it had been asked.
  open({ key, document: found, images, why }) {
    const texts = (found.candidates || []).map((each) => each.text), kind = found.candidates ? "candidates" : "answer";
    const turn = this.talk.ask({ text: String(found.question || ""), images: images.map(opened), options: {}, model: this.model, why, kind, texts });
    Object.assign(addVersion(turn), { document: found, key });
    this.draw();
    this.views.get(turn).root.scrollIntoView({ block: "start", behavior: "instant" });
  }
}
