// How far sampled answers agree.

import { percent, plain } from "../../shared/answer.js";
import { h } from "../dom.js";
import { words } from "../strings.js";

export default {
  name: "samples_panel",
  fits: ({ turn }) => turn.kind === "answer",
  lacks: ({ lacks }) => lacks.samples,
  settings: () => [{ name: "n", label: words.howMany, values: [4, 8, 16, 32], value: 8 }],
  load: ({ settings, ask }) => ask({ panel: "samples", settings }),

  show(root, { answers, n, agreement }) {
    root.append(
      h("p", {}, h("b", {}, words.agreement(percent(agreement))), " ", h("span", { class: "faint" }, words.samplesAbout(n))),
      h("ul", { class: "agreeing" }, ...answers.map(({ text, count }) => {
        const line = h("li", {}, h("span", { dir: "auto" }, plain(text).slice(0, 2000) || "…"), h("b", {}, `${count} ${words.times} ${n}`));
        line.style.setProperty("--w", (count / n).toFixed(3));
        return line;
      })));
  },
};
