"""No violation that axe-core finds, in the report and in the component, light and dark, at desktop and phone width."""

from __future__ import annotations

import pytest
from accessibility import violations
from components import component_page, widget_page
from render_cases import answer, scores, two_digits

from vlmprobe.display import page, table_html


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["light-desktop", "dark-phone"])
def check(browser, tmp_path, request):
    """Open a page, do something, and let axe-core look at it."""
    scheme, width = request.param
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def run(html, *steps):
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        browser.get(file.as_uri())
        for step in steps:
            browser.execute_script(step)
        assert violations(browser) == []

    yield run
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


UNFOLD = "for (const each of document.querySelectorAll('details')) each.open = true"
LONG = answer(*[f" word{number}" for number in range(60)], probability=0.02)


def test_the_report(check):
    ranked = scores({"yes": [0.7], "a longer candidate": [0.2, 0.9]}, question="is it so?")
    check(page([two_digits(), LONG, ranked]), UNFOLD)


def test_a_table_in_a_notebook(check):
    host = "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    host += "<title>t</title><main><h1>A notebook</h1>"
    check(f"{host}{table_html(two_digits().output)}</main></html>")


@pytest.mark.parametrize("step", ["view.select(2)", "view.select(4, 'prompt')"])
def test_an_answer(check, step):
    check(component_page(two_digits().to_dict()), UNFOLD, step)


def test_candidates(check):
    ranked = scores({f"candidate {number}": [0.02] for number in range(30)})
    check(component_page(ranked.to_dict(), "showScores"), UNFOLD, "view.select(3)")


def test_the_box_of_a_widget(check):
    pytest.importorskip("anywidget", reason="needs anywidget (in the extra widget)")
    from vlmprobe.display.widget import AnswerWidget

    traits = {"question": "what?", "busy": False, "earlier": 1, "error": "it failed"}
    check(widget_page(AnswerWidget._esm, AnswerWidget(two_digits(), asks=True).get_state() | traits))
