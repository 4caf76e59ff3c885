// Which part of the image each token came from.

import { nats } from "../../shared/answer.js";
import { h } from "../dom.js";
import { words } from "../strings.js";
import { idsOf, needsIds } from "./shared.js";

const allImages = (turn) => [...turn.before.flatMap((each) => each.turn.images), ...turn.images];

export default {
  name: "regions",
  fits: ({ turn }) => turn.kind === "answer" && allImages(turn).length > 0,
  lacks: ({ version, lacks }) => lacks.regions || needsIds(version),
  settings({ turn }) {
    const count = allImages(turn).length;
    const which = count > 1 ? [{ name: "image", label: words.imageNumber, values: [...Array(count).keys()], value: count - 1 }] : [];
    return [...which, { name: "grid", label: words.cells, values: [4, 8, 12, 16], value: 8 }];
  },
  load: ({ version, settings, ask }) => ask({ panel: "regions", answer: idsOf(version), settings }),

  show(root, { regions, tokens, worth, unsupported, image }) {
    const grid = h("div", { class: "grid-of-regions" });
    const cells = regions.map((row) => row.map(() => grid.appendChild(h("span"))));
    grid.style.setProperty("--columns", regions[0].length);
    const map = h("div", { class: "map", role: "img" }, h("img", { src: image, alt: "" }), grid);
    const name = h("p", { class: "name-of-token", dir: "auto" }), most = h("p"), whole = h("p", { class: "faint" });
    root.append(h("p", { class: "faint about" }, words.regionsAbout), h("div", { class: "regions-body" }, map, h("div", {}, name, most, whole)));

    function select(index) {
      const at = index === null || index === undefined || !(index in tokens) ? null : index;
      const lost = regions.map((row) => row.map((cell) => at === null ? cell.reduce((sum, each) => sum + (each ?? 0), 0) : cell[at] ?? 0));
      const limit = Math.max(...lost.flat()), place = lost.flat().indexOf(limit), columns = lost[0].length;
      lost.forEach((row, r) => row.forEach((value, c) => {
        cells[r][c].style.setProperty("--share", limit > 0 ? Math.max(0, value / limit).toFixed(3) : "0");
        cells[r][c].className = limit > 0.05 && r * columns + c === place ? "most" : "";
      }));
      name.textContent = at === null ? words.whole : tokens[at].trim() || tokens[at];
      most.textContent = limit > 0.05 ? words.strongest(Math.floor(place / columns) + 1, (place % columns) + 1, nats(limit)) : words.nothing;
      map.setAttribute("aria-label", `${name.textContent}. ${most.textContent}`);
      const sum = at === null ? worth.reduce((total, each) => total + (each ?? 0), 0) : worth[at];
      whole.textContent = sum === null ? "" : `${words.worth(nats(sum))}${at !== null && unsupported.includes(at) ? ` · ${words.unsupported}` : ""}`;
    }
    select(null);
    return { select };
  },
};
