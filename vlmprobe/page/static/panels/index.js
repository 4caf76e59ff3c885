// Panels below an answer. Each is one module with
//   name                      of the button, a key of strings.js
//   fits({turn})              whether it is about such an answer at all
//   lacks({turn, version, lacks})   why it cannot be shown, as text; empty if it can
//   settings                  [{name, label, values, value}], numbers that can be chosen
//   load(context)             what it shows: context has turn, version, spec, settings, ask(more), progress(text)
//   show(root, data, context) draws it; may return {select(index)}, which follows the token that is looked at
// A new panel is a module of its own, and one more name in this list.

import { ask } from "../api.js";
import { h } from "../dom.js";
import { again } from "../images.js";
import { words } from "../strings.js";
import { keysOf, specOf } from "../talk.js";
import layers from "./layers.js";
import python from "./python.js";
import regions from "./regions.js";
import samples from "./samples.js";

export const PANELS = [regions, layers, samples, python];

export function panelBar(root, { turn, lacks, id }) {
  const bar = h("div", { class: "bar-of-panels", role: "group", "aria-label": words.panels, hidden: true });
  const opened = new Map(); // panel -> {section, button, shown}
  let version = null, selected = null;
  root.append(bar);

  const places = PANELS.map((panel) => {
    const section = h("div", { class: `opened ${panel.name}`, id: `${id}-${panel.name}`, hidden: true, role: "group", "aria-label": words[panel.name] });
    const button = h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": section.id, onclick: () => toggle(panel) }, words[panel.name]);
    bar.append(button);
    root.append(section);
    return { panel, section, button };
  });
  const placeOf = (panel) => places.find((each) => each.panel === panel);

  function toggle(panel) {
    const { section, button } = placeOf(panel);
    if (opened.has(panel)) {
      opened.delete(panel);
      section.hidden = true;
      section.replaceChildren();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    opened.set(panel, { shown: null });
    section.hidden = false;
    button.setAttribute("aria-expanded", "true");
    fill(panel);
  }

  async function fill(panel) {
    const { section } = placeOf(panel), state = opened.get(panel), of = version;
    state.shown = null;
    const why = panel.lacks({ turn, version, lacks });
    if (why) {
      section.replaceChildren(h("p", { class: "faint" }, why));
      return;
    }
    const settings = state.settings ||= Object.fromEntries((panel.settings?.({ turn }) || []).map(({ name, value }) => [name, value]));
    const status = h("p", { class: "faint", role: "status" }, `${words.computing} …`);
    const key = `${panel.name} ${JSON.stringify(settings)}`;
    const context = {
      turn, version, settings,
      spec: specOf(turn, version),
      progress: (text) => { status.textContent = text; },
      select: (index) => { selected = index; state.shown?.select?.(index); },
      ask: (more) => {
        const spec = { ...specOf(turn), ...more };
        return ask(spec, { resend: () => again(keysOf(spec)), on: {
          queue: ({ ahead, loading }) => { status.textContent = loading ? words.opening : words.waiting(ahead); },
          start: () => { status.textContent = `${words.computing} …`; },
          progress: ({ done, of: all }) => { status.textContent = words.sampling(done, all); },
        } });
      },
    };
    const chosen = choices(panel, settings, () => fill(panel));
    const body = h("div", { class: "body-of-panel" }, status);
    section.replaceChildren(...chosen, body);
    try {
      const data = of.panels[key] ||= await panel.load(context);
      if (version !== of || opened.get(panel) !== state || section.lastChild !== body) return;
      body.replaceChildren();
      state.shown = panel.show(body, data, context) || {};
      state.shown.select?.(selected);
    } catch (error) {
      if (section.lastChild === body) body.replaceChildren(h("p", { class: "wrong" }, error.message));
    }
  }

  function choices(panel, settings, changed) {
    return (panel.settings?.({ turn }) || []).map(({ name, label, values }) => h("label", { class: "choice-of-panel" }, h("span", {}, label),
      h("select", { onchange: (event) => { settings[name] = Number(event.target.value); changed(); event.target.isConnected || placeOf(panel).section.querySelector("select")?.focus(); } },
        ...values.map((each) => h("option", { value: each, selected: each === settings[name] }, String(typeof each === "number" && name === "image" ? each + 1 : each))))));
  }

  return {
    select(index) {
      selected = index;
      for (const { shown } of opened.values()) shown?.select?.(index);
    },
    // Of which answer the panels are; null while there is none.
    show(next) {
      version = next;
      selected = null;
      bar.hidden = !next;
      for (const { panel, section, button } of places) {
        const why = next && panel.fits({ turn }) ? panel.lacks({ turn, version: next, lacks }) : "";
        button.hidden = !panel.fits({ turn });
        if (why) button.setAttribute("aria-disabled", "true");
        else button.removeAttribute("aria-disabled");
        button.title = why;
        section.hidden = !next || !opened.has(panel);
        if (next && opened.has(panel)) fill(panel);
      }
    },
  };
}
