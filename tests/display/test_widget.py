"""The widget: its traits without a browser, and its view in one, with a model of anywidget's interface."""

from __future__ import annotations

import subprocess
import sys

import pytest
from components import widget_page
from render_cases import scores, two_digits

import vlmprobe
from vlmprobe.display.html import image_parts
from vlmprobe.errors import ResultError

pytest.importorskip("anywidget", reason="needs anywidget (in the extra widget)")
from vlmprobe.display.widget import AnswerWidget, document_of


def test_a_result_is_handed_over_as_its_document():
    result = two_digits()
    widget = vlmprobe.widget(result, lang="zh")
    assert widget.get_state(["document", "lang", "asks", "_selection"]) == {
        "document": result.to_dict() | {"images": [image_parts(result.images[0])["uri"]]},
        "lang": "zh",
        "asks": False,
        "_selection": None,
    }


def test_what_is_selected_is_the_row():
    result = two_digits()
    widget, seen = vlmprobe.widget(result), []
    assert widget.selected is None
    widget.observe(lambda change: seen.append(change.new), "selected")
    widget.set_state({"_selection": {"part": "output", "index": 2}})  # as the browser does
    assert widget.selected == {"part": "output", "index": 2, **result.to_dict()["output"][2]}
    widget.select(4, "prompt")
    assert widget.selected["token"] == "describe"
    widget.select(None)
    assert [each and each["token"] for each in seen] == [" seven", "describe", None]


@pytest.mark.parametrize("wrong", [{}, {"part": "meta", "index": 0}, {"part": "output", "index": 99}, {"index": "2"}])
def test_a_selection_of_nothing_is_nothing(wrong):
    widget = vlmprobe.widget(two_digits())
    widget.set_state({"_selection": wrong})
    assert widget.selected is None


def test_candidates_can_be_selected():
    widget = vlmprobe.widget(scores({"no": [0.2], "yes": [0.7]}))
    widget.select(1)
    assert (widget.selected["part"], widget.selected["text"]) == ("candidates", "yes")
    with pytest.raises(ResultError, match="no row 2 of candidates"):
        widget.select(2)


def test_only_results_can_be_shown():
    with pytest.raises(ResultError, match="not NoneType"):
        vlmprobe.widget(None)
    with pytest.raises(ResultError, match="not list"):
        vlmprobe.widget([two_digits()])
    with pytest.raises(ResultError, match="not TokenTable"):
        vlmprobe.widget(two_digits().output)


def test_without_anywidget_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['anywidget'] = None\n"
        "import vlmprobe\nfrom vlmprobe import *\nassert callable(widget)\n"  # the name is there without it
        "try: widget(None)\nexcept vlmprobe.VlmprobeError as error: print(type(error).__name__, error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("MissingExtraError anywidget is needed here; install it with: pip install 'anywidget")


@pytest.fixture
def show(browser, tmp_path):
    """Open the view of a widget; afterwards the console must be empty and nothing fetched."""

    def open_page(widget):
        file = tmp_path / "widget.html"
        file.write_text(widget_page(widget._esm, widget.get_state()), encoding="utf-8")
        browser.get(file.as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_a_click_comes_back_and_a_selection_is_shown(show):
    browser = show(vlmprobe.widget(two_digits()))
    click = "document.querySelectorAll('.t')[arguments[0]].click()"
    browser.execute_script(click, 2)
    assert browser.execute_script("return saved") == [{"part": "output", "index": 2}]
    browser.execute_script("model.set('_selection', {part: 'output', index: 8})")  # from Python
    selected = "return document.querySelector('[aria-selected=true]')?.textContent"
    assert browser.execute_script(selected) == "blue"
    assert "blue" in browser.execute_script("return document.querySelector('.panel').textContent")
    browser.execute_script("model.set('_selection', null)")
    assert browser.execute_script(selected) is None
    assert len(browser.execute_script("return saved")) == 1  # nothing is sent back
    assert browser.execute_script("return document.querySelectorAll('.panel button, form').length") == 0


def test_another_document_is_shown_and_a_closed_view_leaves_nothing(show):
    browser = show(vlmprobe.widget(two_digits()))
    browser.execute_script("model.set('document', arguments[0])", document_of(scores({"yes": [0.7], "no": [0.2]})))
    assert browser.execute_script("return document.querySelector('.candidate').textContent") == "yes"
    browser.execute_script("close_view()")
    assert browser.execute_script("return [listening(), document.getElementById('app').textContent]") == [0, ""]


def test_the_selection_of_a_widget_is_there_when_it_opens(show):
    widget = AnswerWidget(two_digits())
    widget.select(2)
    browser = show(widget)
    assert browser.execute_script("return document.querySelector('[aria-selected=true]').textContent") == "seven"
