
// --- The view of a widget: vlmprobe/display/widget.py and vlmprobe/probe/widget.py hold its model ---

function render({ model, el }) {
  const languages = model.get("lang") || el.ownerDocument.defaultView.navigator.languages, words = wordsOf(languages);
  const make = maker(el.ownerDocument), place = make("div");
  let view = null, kind = null;

  function onSelect(index, row, part) {
    model.set("_selection", index === null ? null : { part, index });
    model.save_changes();
  }
  const onAlternative = (index, { id, token }) => model.send({ do: "branch", index, id, token });

  function select() {
    const chosen = model.get("_selection"), now = view?.selected;
    if (now?.index !== chosen?.index || now?.part !== chosen?.part) view?.select(chosen ? chosen.index : null, chosen?.part);
  }
  function show() {
    const document = model.get("document"), next = document.candidates ? showScores : showAnswer;
    if (!document.candidates && !document.output) return;
    if (view && kind === next) view.update(document);
    else {
      view?.destroy();
      view = next(place, document, { onSelect, onAlternative: model.get("asks") ? onAlternative : undefined, lang: languages });
      kind = next;
    }
    select();
  }
  const listen = (message) => { if (message?.rows) view?.append(message.rows); };
  const box = model.get("asks") ? askBox(model, make, words) : null;

  el.append(...box ? [box.root] : [], place);
  show();
  const events = [["change:document", show], ["change:_selection", select], ["msg:custom", listen]];
  for (const [name, act] of events) model.on(name, act);
  return () => {
    for (const [name, act] of events) model.off(name, act);
    box?.stop();
    view?.destroy();
  };
}

// A question, and buttons that ask it, stop the answer, and go back to the answer before.
function askBox(model, make, words) {
  const root = make("form", "vlmprobe ask-box"), label = make("label"), field = make("textarea", "", "", { rows: "1", dir: "auto" });
  const ask = make("button", "", words.ask, { type: "submit" }), stop = make("button", "", words.stop, { type: "button" });
  const back = make("button", "", words.back, { type: "button" }), error = make("p", "error", "", { role: "alert" });
  label.append(make("span", "faint", words.question), field);
  root.append(label, ask, stop, back, error);
  field.value = model.get("question");

  function draw() {
    const busy = model.get("busy");
    ask.disabled = busy;
    stop.disabled = !busy;
    back.disabled = busy || !model.get("earlier");
    error.textContent = plain(model.get("error"));
    error.hidden = !error.textContent;
  }
  const answered = () => { field.value = model.get("question"); };
  root.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!ask.disabled && field.value.trim()) model.send({ do: "ask", question: field.value });
  });
  field.addEventListener("keydown", (event) => {
    event.stopPropagation(); // a notebook has keys of its own
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    root.requestSubmit();
  });
  stop.addEventListener("click", () => model.send({ do: "stop" }));
  back.addEventListener("click", () => model.send({ do: "back" }));
  const names = ["change:busy", "change:error", "change:earlier"];
  for (const name of names) model.on(name, draw);
  model.on("change:question", answered);
  draw();
  return {
    root,
    stop() {
      for (const name of names) model.off(name, draw);
      model.off("change:question", answered);
    },
  };
}

export default { render };
