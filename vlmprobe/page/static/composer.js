// Where a question is written: its images, its words, the kind of its answer, and settings.

import { sample, samples } from "./api.js";
import { field, h, tell } from "./dom.js";
import { filesOf, known, send } from "./images.js";
import { words } from "./strings.js";

const KINDS = ["answer", "yes_no", "options", "levels", "candidates"];
const EXAMPLES = { options: "textsOptions", levels: "textsLevels", candidates: "textsCandidates" };

// `onAsk({text, images, kind, texts, options})` and `onStop()` are called; returns what the page does with it.
export function composer(form, { onAsk, onStop }) {
  let images = [], asking = false, begun = false;
  const strip = h("ul", { class: "strip", "aria-label": words.image });
  const file = h("input", { type: "file", accept: "image/*", multiple: true, class: "unseen", tabindex: "-1", "aria-label": words.addImages, onchange: () => { take([...file.files]); file.value = ""; } });
  const add = h("button", { type: "button", class: "quiet add", title: words.dropImages, onclick: () => file.click() }, words.addImages);
  const text = h("textarea", { id: "question", rows: "1", "aria-label": words.question, placeholder: words.placeholder, autocomplete: "off" });
  const kinds = h("fieldset", { class: "kinds" }, h("legend", { class: "unseen" }, words.mode));
  const texts = h("textarea", { rows: "3", spellcheck: "false" });
  const textsField = h("div", { class: "texts", hidden: true }, field(words.texts, texts));
  const number = (name, attributes) => h("input", { type: "number", name, placeholder: words.byDefault, ...attributes });
  const settings = h("div", { class: "settings", id: "settings", hidden: true },
    field(words.maxNewTokens, number("max_new_tokens", { min: "1", step: "1" })),
    field(words.temperature, number("temperature", { min: "0", step: "0.1" })),
    field(words.seed, number("seed", { min: "0", step: "1" })));
  const unfold = h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": "settings", onclick: () => {
    settings.hidden = !settings.hidden;
    unfold.setAttribute("aria-expanded", String(!settings.hidden));
  } }, words.settings);
  const ask = h("button", { type: "submit", class: "main" }, words.ask);
  const apart = h("input", { type: "checkbox" }), apartField = h("label", { class: "apart", hidden: true }, apart, words.apart);
  const wrong = h("p", { class: "wrong", role: "alert" });

  for (const kind of KINDS) {
    const input = h("input", { type: "radio", name: "kind", value: kind, checked: kind === "answer", onchange: () => choose(kind) });
    kinds.append(h("label", { class: "kind" }, input, h("span", {}, words[kind])));
  }
  form.setAttribute("aria-label", words.question);
  form.append(strip, apartField, textsField, settings, wrong, h("div", { class: "line" }, text, ask), h("div", { class: "line tools" }, add, file, kinds, unfold));

  const kind = () => form.elements.kind.value;

  function choose(which) {
    textsField.hidden = !(which in EXAMPLES);
    texts.placeholder = words[EXAMPLES[which]] || "";
    wrong.textContent = "";
  }

  function draw() {
    strip.replaceChildren(...images.map((image) => h("li", {},
      h("img", { src: image.url, alt: image.name || words.image }),
      h("button", { type: "button", class: "remove", "aria-label": `${words.removeImage} ${image.name}`, onclick: () => {
        images = images.filter((each) => each !== image);
        draw();
        add.focus();
      } }, "×"))));
    apartField.hidden = begun || images.length < 2;
    text.placeholder = images.length ? words.placeholder : words.placeholderNone;
  }

  async function take(files, name) {
    wrong.textContent = "";
    for (const each of files) {
      try {
        const image = await send(each, name);
        if (!images.includes(image)) images.push(image);
      } catch (error) {
        wrong.textContent = error.message;
      }
      draw();
    }
  }

  function grow() {
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight + 2, 180)}px`;
  }

  function options() {
    const found = {};
    for (const input of settings.querySelectorAll("input")) {
      if (input.value !== "") found[input.name] = Number(input.value);
    }
    return found;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (asking) { onStop(); return; }
    const which = kind(), listed = which in EXAMPLES ? texts.value.split("\n").map((line) => which === "candidates" ? line : line.trim()).filter((line) => line.trim()) : [];
    if (!text.value.trim()) { text.focus(); return; }
    if (which in EXAMPLES && listed.length < 2) { wrong.textContent = words.fewTexts; texts.focus(); return; }
    wrong.textContent = "";
    onAsk({ text: text.value.trim(), images: images.map(({ key }) => key), kind: which, texts: listed, options: options(), apart: !apartField.hidden && apart.checked });
    images = [];
    text.value = "";
    grow();
    draw();
  });
  text.addEventListener("input", grow);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !asking) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && asking && !event.defaultPrevented) onStop(); });
  document.addEventListener("paste", (event) => {
    const found = filesOf(event.clipboardData);
    if (found.length) { event.preventDefault(); take(found); }
  });
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(filesOf(event.dataTransfer));
  });
  new ResizeObserver(() => document.documentElement.style.setProperty("--composer", `${form.offsetHeight}px`)).observe(form);
  draw();

  return {
    set asking(value) {
      asking = value;
      ask.textContent = value ? words.stop : words.ask;
      ask.classList.toggle("stopping", value);
    },
    set begun(value) {
      if (begun === value) return;
      begun = value;
      draw();
    },
    set lacks(value) {
      for (const input of kinds.querySelectorAll("input")) {
        const why = input.value === "answer" ? "" : value.score || "";
        input.disabled = Boolean(why);
        input.parentElement.title = why;
      }
    },
    restore(question, why) { // a question that could not be asked
      text.value = question.text;
      images = question.images.map(known);
      wrong.textContent = why;
      grow();
      draw();
    },
    use(keys) { images = keys.map(known); draw(); },
    focus: () => text.focus(),
    take,
  };
}

// The first screen: what this is, and the bundled images.
export async function start(root, onSample) {
  const list = h("ul", { class: "samples" });
  root.append(h("h2", {}, words.startTitle), h("p", {}, words.startText), h("p", { class: "faint" }, words.samples), list);
  for (let place = 0; place < 6; place++) list.append(h("li", { class: "blank" })); // their place is kept
  const { images } = await samples();
  list.replaceChildren(...images.map((name) => h("li", {},
    h("button", { type: "button", "aria-label": `${words.sampleOf}: ${name}`, onclick: async () => {
      await onSample(await sample(name), name);
      tell(name);
    } }, h("img", { src: `api/samples/${encodeURIComponent(name)}`, alt: "", width: "256", height: "256" })))));
}

