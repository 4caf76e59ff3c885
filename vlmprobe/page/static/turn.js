// One question on the screen, with its answer, the branches of it, and panels below.

import { label, showAnswer, showScores } from "../shared/answer.js";
import { h } from "./dom.js";
import { known } from "./images.js";
import { panelBar } from "./panels/index.js";
import { lang, words } from "./strings.js";
import { outline, textOf } from "./talk.js";

let count = 0;

// `onBranch(version, index, alternative)` and `onSwitch(version)` are called; `lacks` says what the model's engine cannot do.
export function turnView(turn, { lacks, legend, onBranch, onSwitch }) {
  const id = `turn-${++count}`;
  const place = h("div", { class: "view" });
  const status = h("p", { class: "status" }, "");
  const branches = h("div", { class: "branches", role: "group", "aria-label": words.branches, hidden: true });
  const images = [...new Set([...turn.before.flatMap((each) => each.turn.images), ...turn.images])].map((key) => known(key)?.shown || "");
  const root = h("div", { role: "group", class: `turn${turn.images.length ? "" : " same"}`, id, "aria-label": `${turn.before.length + 1}. ${turn.text.slice(0, 200)}` }, place, status, branches);
  const panels = panelBar(root, { turn, lacks, id });
  let handle = null, kind = null, shown = null;

  const beginning = (rows) => ({ question: turn.text, images, text: "", output: rows, prompt: null, meta: {} });

  function component(document) {
    const branches = turn.kind === "answer" && !lacks.branch;
    const wanted = document.candidates ? "scores" : branches ? "answer" : "answer without branches";
    if (wanted !== kind) {
      handle?.destroy();
      kind = wanted;
      handle = (wanted === "scores" ? showScores : showAnswer)(place, document, {
        lang, legend,
        onSelect: (index, row, part) => { if (part === "output") panels.select(index); },
        onAlternative: branches ? (index, alternative) => onBranch(shown, index, alternative) : undefined,
      });
    } else handle.update(document);
  }

  function drawBranches() {
    const listed = outline(turn);
    branches.hidden = listed.length < 2;
    branches.replaceChildren(h("h2", {}, words.branches), h("ul", {}, ...listed.map(([version, depth]) => {
      const name = version.from
        ? [h("b", { dir: "auto" }, label(version.from.alternative.token)), ` ${words.insteadOf} `, h("span", { dir: "auto" }, label(version.instead))]
        : [words.firstAnswer];
      const whole = version.document ? textOf(version.document) : "…";
      const made = h("button", { type: "button", "aria-current": version === shown ? "true" : null, onclick: () => onSwitch(version) },
        h("span", { class: "which" }, ...name), h("span", { class: "text faint", dir: "auto" }, whole.slice(0, 300)));
      made.style.setProperty("--depth", Math.min(depth, 6));
      return h("li", {}, made);
    })));
  }

  return {
    root,
    // An answer begins: of a branch with what is kept.
    begin(version) {
      shown = version;
      let rows = [];
      if (version.from) {
        const { version: source, index, alternative } = version.from, output = source.document.output, instead = output[index];
        rows = [...output.slice(0, index), { ...instead, ...alternative, kind: "text", confidence: Math.exp(alternative.logprob), rank: null }];
      }
      panels.show(null);
      root.setAttribute("aria-busy", "true");
      if (turn.kind === "answer") {
        component(beginning(rows));
        handle.append([]); // nothing stands below the text until it is whole
      } else place.replaceChildren(h("div", { class: "vlmprobe" }, h("p", { class: "question", dir: "auto" }, turn.text)));
      drawBranches();
    },
    add(row) {
      handle.append([row]);
    },
    status(text) {
      status.textContent = text;
    },
    // The answer that is shown is whole, or another one is to be shown.
    show(version) {
      shown = version;
      root.removeAttribute("aria-busy");
      status.textContent = lacks.branch && turn.kind === "answer" ? `${words.noBranch}: ${lacks.branch}` : "";
      if (turn.kind !== "answer" && !kind) place.replaceChildren();
      component({ ...version.document, question: turn.text, images });
      drawBranches();
      panels.show(version);
    },
    focus(index) {
      handle.select(index);
      place.querySelector(`.t[data-index="${index}"]`)?.focus();
    },
    destroy() {
      handle?.destroy();
      root.remove();
    },
  };
}
