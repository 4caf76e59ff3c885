// What each layer would have said: layers by tokens.

import { label, level, percent } from "../../shared/answer.js";
import { h } from "../dom.js";
import { words } from "../strings.js";
import { idsOf, needsIds } from "./shared.js";

const SEEN = 24; // tokens side by side

export default {
  name: "layers",
  fits: ({ turn }) => turn.kind === "answer",
  lacks: ({ version, lacks }) => lacks.layers || needsIds(version),
  load: ({ version, ask }) => ask({ panel: "layers", answer: idsOf(version) }),

  show(root, { tokens, layers, probabilities, says, leads }) {
    let from = 0;
    const place = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": words.layers });
    const step = (by, name) => h("button", { type: "button", class: "quiet", onclick: () => draw(from + by * SEEN) }, name);
    const earlier = step(-1, words.earlier), later = step(1, words.later), which = h("span", { class: "faint" });
    root.append(h("p", { class: "faint about" }, words.layersAbout), place);
    if (tokens.length > SEEN) root.append(h("p", { class: "steps" }, earlier, which, later));

    function draw(start, selected = null) {
      from = Math.max(0, Math.min(start, tokens.length - 1));
      const seen = [...tokens.keys()].slice(from, from + SEEN);
      earlier.disabled = from === 0;
      later.disabled = from + SEEN >= tokens.length;
      which.textContent = words.columns(from + 1, from + seen.length, tokens.length);
      const head = h("tr", {}, h("th", { scope: "col", class: "faint" }, words.layer), ...seen.map((t) => h("th", { scope: "col", dir: "auto", class: t === selected ? "looked-at" : "" }, label(tokens[t]).slice(0, 24))));
      const lines = [...layers.keys()].reverse().map((l) => h("tr", {}, h("th", { scope: "row", class: "faint" }, String(layers[l])), ...seen.map((t) => {
        const p = probabilities[l][t];
        return h("td", { class: `l${level(p) ?? ""}${leads[t] === layers[l] ? " leads" : ""}${t === selected ? " looked-at" : ""}`, dir: "auto", title: percent(p) }, label(says[l][t]).slice(0, 24));
      })));
      place.replaceChildren(h("div", { class: "vlmprobe" }, h("table", { class: "layers-table" }, h("thead", {}, head), h("tbody", {}, ...lines))));
    }
    draw(0);
    return { select: (index) => draw(index === null || index === undefined ? from : Math.floor(index / SEEN) * SEEN, index) };
  },
};
