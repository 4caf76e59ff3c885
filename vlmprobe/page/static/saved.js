// Answers that were saved before, or those of a run: a list to search, and one of them opened as if it had been asked.

import { entry, listed } from "./api.js";
import { h, tell } from "./dom.js";
import { percent, plain } from "../shared/answer.js";
import { words } from "./strings.js";

// Adds the list to `root`; `onOpen({key, document, images, why})` follows the choice of a row.
export async function savedList(root, onOpen) {
  let start = 0, last = 0;
  const title = h("h2"), count = h("span", { class: "faint" }), lines = h("tbody");
  const find = h("input", { type: "search", class: "find", "aria-label": words.find, placeholder: words.find });
  const order = h("select", { "aria-label": words.order }, h("option", { value: "place" }, words.asSaved), h("option", { value: "confidence" }, words.leastSure));
  const step = (by, name) => h("button", { type: "button", class: "quiet", onclick: () => draw(start + by) }, name);
  const heads = [words.row, words.question, words.answered, words.confidence].map((name) => h("th", { scope: "col" }, name));
  const place = h("div", { class: "vlmprobe" }, h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": words.saved },
    h("table", { class: "saved-rows" }, h("thead", {}, h("tr", {}, ...heads)), lines)));
  root.append(title, h("p", { class: "line saved-tools" }, find, order, count), place);

  function line(row) {
    const open = h("button", { type: "button", class: "candidate", dir: "auto", onclick: () => choose(row, open) }, plain(row.question) || "…");
    const said = row.error ? h("span", { class: "wrong" }, plain(row.error)) : plain(row.answer);
    if (row.error) open.disabled = true;
    return h("tr", {}, h("td", {}, row.id === null ? String(row.place) : plain(row.id)), h("td", {}, open), h("td", { dir: "auto" }, said),
      h("td", {}, row.confidence === null ? "–" : percent(row.confidence)));
  }

  async function choose(row, button) {
    button.setAttribute("aria-busy", "true");
    try {
      onOpen(await entry(row.place));
    } catch (error) {
      tell(error.message);
      button.after(h("p", { class: "wrong" }, error.message));
    } finally {
      button.removeAttribute("aria-busy");
    }
  }

  const earlier = step(-50, words.previous), later = step(50, words.following);
  root.append(h("p", { class: "steps" }, earlier, later));

  async function draw(from = 0) {
    const asked = ++last;
    const found = await listed(find.value, order.value, from);
    if (asked !== last) return;
    start = found.start;
    title.textContent = `${words.saved}: ${found.name}`;
    count.textContent = words.rows(found.count);
    lines.replaceChildren(...found.rows.map(line));
    earlier.disabled = start === 0;
    later.disabled = start + found.rows.length >= found.count;
    earlier.parentElement.hidden = earlier.disabled && later.disabled;
  }
  let typing;
  find.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(draw, 150); });
  order.addEventListener("change", () => draw());
  await draw();
}
