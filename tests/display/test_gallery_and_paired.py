"""How galleries and paired comparisons look: what is shown, and that foreign text is never interpreted."""

from __future__ import annotations

import io

import pytest
from answer_cases import data_set, said
from rich.console import Console

from vlmprobe.analysis import gallery
from vlmprobe.analysis.paired import paired
from vlmprobe.errors import ResultError

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}[red]\x1b[31m"


def printed(what, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def hostile():
    a, b = (
        [
            said(HOSTILE + str(row), 0.4, colour="red", id=f"{HOSTILE}{row}", question=f"{side}{HOSTILE}", gold=HOSTILE)
            for row in range(2)
        ]
        for side in "ab"
    )
    return paired(a, b, names=(HOSTILE, "b" + HOSTILE))


def test_foreign_text_is_escaped(hostile):
    shown = [hostile, hostile.wrong(), gallery.least_sure([each.answers[0] for each in hostile.examples])]
    pages = [each._repr_html_() for each in shown] + [shown[1].to_html()]
    for html in pages:
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert "&lt;script&gt;" in html
        assert "{{ 7 * 7 }}" in html
        assert "\x1b" not in html
    for each in shown:
        text = printed(each)
        assert "\x1b" not in text
        assert "[red]" in text.replace("\n", "")


def test_a_page_holds_images_answers_and_the_right_one(tmp_path):
    a = [said("cat", 0.9, colour="red", id="p-1"), said("cat", 0.8, colour="red", id="p-2")]
    b = [said("dog", 0.6, colour="red", id="p-1"), said("cat", 0.7, colour="red", id="p-2")]
    found = paired(a, b, ["cat", ["cat", "puss"]], names=("one", "two"))
    html = found.changed().to_html()
    assert found.changed().to_html(tmp_path / "folder" / "page.html") == tmp_path / "folder" / "page.html"
    assert (tmp_path / "folder" / "page.html").read_text(encoding="utf-8") == html
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultError, match="is not an HTML page"):
        found.changed().to_html(tmp_path / "notes.txt")
    assert html.count('src="data:image/png') == 1
    for part in ("Right in only one of one and two", "What is it?", "p-1", "✓ right", "✗ wrong", "90.0%", "60.0%"):
        assert part in html
    assert "p-2" not in html
    assert "cat / puss" in found.least_sure().to_html()
    assert "1 of 2" in found.least_sure(1).to_html()
    text = printed(found.changed())
    assert "✓ cat 90.0%" in text
    assert "✗ dog 60.0%" in text


def test_a_paired_comparison_shows_its_table():
    a, b, gold = data_set(1, 40, better=0.2)
    found = paired(a, b, gold, names=("old", "new"))
    change = found.brier.difference
    for text in (printed(found), found._repr_html_()):
        for part in ("old", "new", "95% interval", "accuracy", "confidence", "ECE", "Brier", f"{found.brier.a:.3f}"):
            assert part in text
        assert f"{change.low:+.3f} to {change.high:+.3f}".replace("-", "−") in text
        assert f"right only with old: {found.mcnemar.only_a}, only with new: {found.mcnemar.only_b}" in text


def test_an_empty_gallery_says_so():
    found = gallery.wrong([said("yes", 0.5)], ["yes"])
    assert len(found) == 0
    assert "Wrong answers, the most confident first: none" in printed(found)
    assert "none" in found.to_html()


def test_a_paired_comparison_is_printed_as_its_table():
    a = [said("cat", 0.9, id=1), said("cat", 0.8, id=2)]
    b = [said("dog", 0.6, id=1), said("cat", 0.7, id=2)]
    found = paired(a, b, ["cat", "cat"], names=("one", "two"))
    lines = str(found).splitlines()
    assert lines[0].split() == ["one", "two", "difference", "95%", "interval", "p"]
    assert [line.split()[0] for line in lines[1:5]] == ["accuracy", "confidence", "ECE", "Brier"]
    assert lines[1].split()[1:4] == ["1.000", "0.500", "−0.500"]
    assert lines[5] == "2 pairs; right only with one: 1, only with two: 0"
    assert "\x1b" not in str(found)
    assert "\n" not in repr(found)
