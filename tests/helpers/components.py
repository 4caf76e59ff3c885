"""Pages that show the component of answer.js, alone or as a widget with a model of anywidget's interface."""

from __future__ import annotations

import json
from typing import Any

from vlmprobe.display.html import read_template

__all__ = ["component_page", "widget_page"]

# What anywidget hands to render(): traits, events, and what the widget sends back.
MODEL = """
const listeners = {};
window.fire = (name, ...values) => { for (const act of listeners[name] || []) act(...values); };
window.state = STATE; window.saved = []; window.sent = [];
window.model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; fire("change:" + name); },
  save_changes: () => saved.push(JSON.parse(JSON.stringify(state._selection))),
  on: (name, act) => { (listeners[name] ||= []).push(act); },
  off: (name, act) => { listeners[name] = (listeners[name] || []).filter((each) => each !== act); },
  send: (message) => sent.push(message),
};
window.listening = () => Object.values(listeners).flat().length;
window.close_view = render({ model, el: document.getElementById("app") });
"""


def component_page(document: dict[str, Any], show: str = "showAnswer", *, lang: str = "en", branch: bool = True) -> str:
    """A page with one component: ``view``, and ``chosen`` and ``branched``, what it has told, in the window."""
    script = f"""
window.chosen = []; window.branched = [];
const onSelect = (index, row, part) => chosen.push([index, row && (row.token ?? row.text), part]);
const onAlternative = {"(index, each) => branched.push([index, each])" if branch else "undefined"};
const given = {_json(document)};
window.formats = {{ wordsOf, plain, label, level, percent, nats, tiny, short }};
window.view = {show}(document.getElementById("app"), given, {{ onSelect, onAlternative, lang: "{lang}" }});
"""
    return _page(read_template("answer.js") + script)


def widget_page(esm: str, state: dict[str, Any]) -> str:
    """A page with a widget: its module and its traits; ``state``, ``saved``, ``sent`` and ``fire`` in the window."""
    return _page(esm + MODEL.replace("STATE", _json(state)))


def _page(module: str) -> str:
    styles = "".join(read_template(name) for name in ("style.css", "page.css", "answer.css"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>mine</title><style>{styles}</style></head><body>"
        f'<main><h1>A component</h1><div id="app"></div></main><script type="module">{module}</script></body></html>'
    )


def _json(value: Any) -> str:
    return json.dumps(value).replace("<", "\\u003c")
