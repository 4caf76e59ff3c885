"""Write docs/img/widget.png and widget-dark.png: a probe's widget with the least sure token selected, in Chromium.

Needs the dev dependencies, the extra widget, chromium and chromium-driver.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from draw_run_report import save, screenshot

import vlmprobe
from vlmprobe.demo import sample_images
from vlmprobe.display.html import read_template
from vlmprobe.probe.widget import AskWidget

HEIGHT = 556  # CSS pixels
MODEL = "({get: name => state[name], on() {}, off() {}, set() {}, save_changes() {}, send() {}})"  # as anywidget's


def main() -> None:
    """Ask about the bundled image that is hard to read, and take the screenshots."""
    probe = vlmprobe.load("demo")
    widget = probe.widget(next(path for path in sample_images() if path.stem.startswith("unsure")))
    widget.select(int(widget.ask("Describe the picture.").logprobs.argmin()))
    images = Path(__file__).resolve().parents[2] / "docs" / "img"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "widget.html"
        page.write_text(html_of(widget), encoding="utf-8")
        for name, scheme in (("widget", "light"), ("widget-dark", "dark")):
            save(screenshot(page, scheme, height=HEIGHT), images / f"{name}.png")


def html_of(widget: AskWidget) -> str:
    """A page that shows the widget as a notebook does."""
    state = json.dumps(widget.get_state()).replace("<", "\\u003c")
    start = f"const state = {state}; render({{model: {MODEL}, el: document.querySelector('main')}});"
    style = read_template("page.css") + widget._css + "main { max-width: none; padding: 1rem 1.5rem; }"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>widget</title><style>{style}</style>'
        f'<body><main></main><script type="module">{widget._esm}{start}</script></body></html>'
    )


if __name__ == "__main__":
    main()
