"""The Chinese pages say what the English ones say: the same headings, code, figures and pictures, in the same order."""

import re

import pytest
from common import DOCS, ROOT

PAGES = sorted(path.stem for path in (DOCS / "zh").glob("*.md"))
PAIRS = [(ROOT / "README.md", ROOT / "README.zh.md")]
PAIRS += [(DOCS / "use" / f"{page}.md", DOCS / "zh" / f"{page}.md") for page in PAGES]
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
both = pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda path: path.stem)


def read(path):
    return path.read_text(encoding="utf-8")


def levels(text):
    """The level of each heading, in order."""
    return [len(found) for found in re.findall(r"^(#+) ", BLOCK.sub("", text), re.MULTILINE)]


def rows(text):
    """How many cells each row of each table has."""
    return [line.count("|") for line in BLOCK.sub("", text).splitlines() if line.startswith("|")]


def figures(text):
    """The numbers of each part that a script writes into the English page."""
    parts = re.findall(r"<!-- ([\w -]+), [^>]+ -->\n(.*?)<!-- end -->", text, re.DOTALL)
    return {name: sorted(re.findall(r"\d+(?:\.\d+)?%?", part)) for name, part in parts}


def pictures(text):
    return re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)', text)


def settled(text):
    """Targets of links as the English page has them: what is in Chinese leads to Chinese."""
    found = re.findall(r"\]\(([^)\s#]+)", BLOCK.sub("", text)) + re.findall(r'href="([^"#]+)', text)
    names = {target.replace(".zh.md", ".md").rpartition("/")[2] for target in found}
    return names - {"coming-from.md", "index.md"}


@both
def test_the_pages_are_in_step(english, chinese):
    ours, theirs = read(english), read(chinese)
    assert BLOCK.findall(ours) == BLOCK.findall(theirs), "code is the same to the last character"
    assert levels(ours) == levels(theirs)
    assert rows(ours) == rows(theirs)
    assert figures(ours) == figures(theirs)
    assert pictures(ours) == pictures(theirs)
    assert settled(ours) == settled(theirs)


@both
def test_each_page_leads_to_the_other_language(english, chinese):
    for page, other in ((english, chinese), (chinese, english)):
        line = read(page).split("\n\n")[1]
        (target,) = re.findall(r"\]\(([^)]+)\)", line)
        assert (page.parent / target).resolve() == other
        assert "中文" in line


def test_there_are_four_pages_and_they_are_in_chinese():
    assert {"ask", "calibration", "candidates", "results"} <= set(PAGES)
    for _, chinese in PAIRS:
        for paragraph in BLOCK.sub("", read(chinese)).split("\n\n"):
            words = re.sub(r"<[^>]*>|`[^`]*`|\([^)]*\)", "", paragraph)
            if len(re.findall(r"[A-Za-z]+", words)) > 12:
                assert re.search(r"[\u4e00-\u9fff]", words), paragraph


@pytest.mark.parametrize(
    ("change", "compared"),
    [
        (lambda text: text.replace("\n## ", "\n### ", 1), levels),
        (lambda text: text.replace("0.498", "0.499"), figures),
        (lambda text: text.replace("choices.png", "choice.png"), pictures),
        (lambda text: text.replace("../use/x", "x").replace("add-a-model.md", "model.md"), settled),
        (lambda text: re.sub(r"^\|.*\n", "", text, count=1, flags=re.MULTILINE), rows),
    ],
)
def test_a_difference_is_seen(change, compared):
    text = read(DOCS / "zh" / "candidates.md")
    assert compared(text) != compared(change(text))
