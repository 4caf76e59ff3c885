// The Python that gives the same.

import { python } from "../api.js";
import { h, tell } from "../dom.js";
import { names } from "../images.js";
import { words } from "../strings.js";
import { keysOf } from "../talk.js";

export default {
  name: "python",
  fits: () => true,
  lacks: ({ turn }) => turn.why || "",
  load: ({ spec }) => python(spec, names(keysOf(spec))),

  show(root, code) {
    const copy = h("button", { type: "button", class: "quiet", onclick: async () => {
      await navigator.clipboard.writeText(code);
      copy.textContent = words.copied;
      tell(words.copied);
    } }, words.copy);
    root.append(h("pre", { tabindex: "0", role: "group", "aria-label": words.python }, code), copy);
  },
};
