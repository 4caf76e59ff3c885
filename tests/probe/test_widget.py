"""The widget that asks: what the browser sends, what Python does with it, what goes wrong."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from components import widget_page

import vlmprobe
from vlmprobe.errors import ImageError, MessageError, ResultError
from vlmprobe.results.document import token_rows

pytest.importorskip("anywidget", reason="needs anywidget (in the extra widget)")
from vlmprobe.demo.bundle import bundled

QUESTION = "describe the picture"


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo")


@pytest.fixture
def widget(probe, picture):
    return probe.widget(picture)


@pytest.fixture(scope="module")
def picture():
    return next(iter(bundled().values())).picture


@pytest.fixture
def sent(widget, monkeypatch):
    """What is sent to the browser."""
    messages = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: messages.append(content))
    return messages


def hear(widget, **message):
    """What the browser sends; waits for what it starts."""
    before = set(threading.enumerate())
    widget._hear(widget, message, [])
    for thread in set(threading.enumerate()) - before:
        if thread.name == "vlmprobe-widget":
            thread.join(60)


def test_an_answer_streams_and_is_that_of_generate(probe, widget, picture, sent):
    result = widget.ask(QUESTION)
    expected = probe.generate(QUESTION, picture)
    assert result.text == expected.text
    np.testing.assert_array_equal(result.output.ids, expected.output.ids)
    streamed = [row for message in sent for row in message["rows"]]
    assert [row["token"] for row in streamed] == expected.output.tokens
    np.testing.assert_allclose([row["logprob"] for row in streamed], expected.output.logprobs, atol=1e-5)
    assert widget.document["output"] == token_rows(result.output)
    assert widget.document["images"][0].startswith("data:image/")
    assert widget.get_state(["busy", "error", "question", "earlier"]) == {
        "busy": False,
        "error": "",
        "question": QUESTION,
        "earlier": 0,
    }


def test_an_alternative_continues_the_answer_and_one_can_go_back(probe, widget, picture):
    first = widget.ask(QUESTION)
    widget.select(2)
    other = token_rows(first.output)[2]["alternatives"][1]
    shown = []
    widget.observe(lambda change: shown.append([row["token"] for row in change.new["output"]]), "document")
    hear(widget, do="branch", index=2, id=other["id"], token=other["token"])
    assert widget.error == ""
    assert shown == [[*first.output.tokens[:2], other["token"]], widget.result.output.tokens]  # at once, and whole
    assert widget.result.output.tokens[:3] == [*first.output.tokens[:2], other["token"]]
    assert widget.result.text == probe.branch(first, 2, other["id"], question=QUESTION, image=picture).text
    assert widget.selected is None
    assert (widget.earlier, widget.document["text"]) == (1, widget.result.text)
    hear(widget, do="back")
    assert (widget.earlier, widget.document["text"]) == (0, first.text)
    hear(widget, do="back")  # there is nothing before it
    assert widget.results == [first]


def test_the_browser_asks(widget):
    hear(widget, do="ask", question=QUESTION)
    assert widget.result is not None
    assert widget.result.meta["question"] == QUESTION
    assert not widget.busy


def test_an_answer_stops_at_the_next_token(widget, monkeypatch):
    def send(content, buffers=None):
        if len(widget.document["output"]) == 3:
            widget._hear(widget, {"do": "stop"}, [])

    monkeypatch.setattr(widget, "send", send)
    result = widget.ask(QUESTION)
    assert (len(result.output), result.finish_reason) == (3, "closed")
    assert len(widget.ask(QUESTION).output) == 3  # stopped again by the same message, not by the one before


@pytest.mark.parametrize(
    "message",
    [
        "text",
        {},
        {"do": "ask"},
        {"do": "ask", "question": " "},
        {"do": "ask", "question": ["a"]},
        {"do": "branch", "index": "2", "id": 4},
        {"do": "branch", "index": True, "id": 4},
        {"do": "branch", "index": 2},
        {"do": "branch", "index": 2, "id": [4]},
        {"do": "_kept"},
    ],
)
def test_another_message_starts_nothing(widget, message):
    assert widget._work_of(message) is None if isinstance(message, dict) else True
    widget._hear(widget, message, [])
    assert not widget.busy
    assert widget.results == []


def test_what_goes_wrong_is_told_and_the_answer_before_stays(widget):
    result = widget.ask(QUESTION)
    hear(widget, do="branch", index=99, id=4)
    assert "position must be an integer from 0" in widget.error
    assert widget.document["text"] == result.text
    assert not widget.busy
    with pytest.raises(ResultError, match="position must be"):
        widget.branch(99, 4)
    with pytest.raises(MessageError):
        widget.ask("")
    assert widget.error
    widget.ask(QUESTION)
    assert widget.error == ""


def test_one_question_at_a_time(widget, monkeypatch):
    told = []

    def send(content, buffers=None):
        if not told:
            told.append(content)
            with pytest.raises(ResultError, match="Another question is being answered"):
                widget.ask(QUESTION)
            widget._hear(widget, {"do": "ask", "question": "what?"}, [])  # the button is disabled; nothing happens

    monkeypatch.setattr(widget, "send", send)
    widget.ask(QUESTION)
    assert told
    assert len(widget.results) == 1


def test_without_an_answer_there_is_nothing_to_branch_from(widget):
    with pytest.raises(ResultError, match="ask first"):
        widget.branch(0, 4)


def test_an_image_that_cannot_be_read_is_told_at_once(probe):
    with pytest.raises(ImageError):
        probe.widget("no-such-file.png")


def test_options_are_those_of_stream(probe, picture):
    widget = probe.widget(picture, max_new_tokens=2, prompt=False)
    assert len(widget.ask(QUESTION).output) == 2
    assert widget.document["prompt"] is None


def test_a_session_adds_its_images(probe, picture):
    with probe.session(picture) as session:
        widget = session.widget()
        assert len(widget.document["images"]) == 1
        assert widget.ask(QUESTION).text == probe.generate(QUESTION, picture).text


def test_in_a_browser(browser, widget, tmp_path):
    widget.ask(QUESTION)
    file = tmp_path / "widget.html"
    file.write_text(widget_page(widget._esm, widget.get_state()), encoding="utf-8")
    browser.get(file.as_uri())
    run = browser.execute_script
    assert run("return document.querySelector('textarea').value") == QUESTION
    buttons = "return [...document.querySelectorAll('form button')].map(each => each.disabled)"
    assert run(buttons) == [False, True, True]
    run("document.querySelector('textarea').value = ' what is it? '; document.querySelector('form').requestSubmit()")
    assert run("return sent") == [{"do": "ask", "question": " what is it? "}]
    run("model.set('busy', true); model.set('document', {question: 'what is it?', output: [], images: []})")
    assert run(buttons) == [True, False, True]
    for row in widget.document["output"][:3]:
        run("fire('msg:custom', {rows: [arguments[0]]})", row)
    shown = "return [...document.querySelectorAll('.t')].map(each => each.textContent)"
    assert "".join(run(shown)) == "".join(widget.result.output.tokens[:3]).replace(" ", "")
    run("document.querySelectorAll('form button')[1].click()")
    run("model.set('busy', false); model.set('earlier', 2); model.set('error', '<b>it failed</b>')")
    assert run("return document.querySelector('[role=alert]').textContent") == "<b>it failed</b>"
    run("document.querySelectorAll('form button')[2].click()")
    run("document.querySelectorAll('.t')[1].click(); document.querySelector('.panel button').click()")
    asked = run("return sent")[1:]
    other = next(
        e for e in widget.document["output"][1]["alternatives"] if e["id"] != widget.document["output"][1]["id"]
    )
    branch = {"do": "branch", "index": 1, "id": other["id"], "token": other["token"]}
    assert asked == [{"do": "stop"}, {"do": "back"}, branch]
    run("close_view()")
    assert run("return listening()") == 0
    assert browser.get_log("browser") == []
