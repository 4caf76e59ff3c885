"""The site of ``make docs``: every page is on it, every link leads somewhere, and it builds without a warning."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from common import ROOT

SCRIPT = ROOT / "tools" / "docs" / "build_site.py"
FENCED = re.compile(r"^ *(```+).*?^ *\1 *$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("build_site", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(path):
    """The Markdown of a page or a notebook, without blocks of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return FENCED.sub("", text)


def anchors(path):
    """What GitHub calls the headings of a page: lower case, hyphens for spaces, no other punctuation."""
    found: list[str] = []
    for title in re.findall(r"^#{1,6} (.+?) *$", prose(path), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        taken = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", each) is not None for each in found)
        found.append(f"{name}-{taken}" if taken else name)
    return found


def targets(path):
    """Every relative target of a link or picture, in Markdown and in HTML."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    found += re.findall(r'\b(?:href|src|srcset)="([^"]+)"', text)
    return [unquote(target) for target in found if not re.match(r"[a-z][a-z+.-]*:", target)]


def broken(path):
    """The targets of a page that lead to no file, or to no heading of it."""
    found = []
    for target in targets(path):
        name, _, anchor = target.partition("#")
        there = (path.parent / name) if name else path
        if not there.exists() or (anchor and there.suffix in (".md", ".ipynb") and anchor not in anchors(there)):
            found.append(target)
    return found


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One `two`, three\n## Again\n## Again\n```\n# no heading\n```\n", encoding="utf-8")
    good = "[a](b.md) [a](b.md#one-two-three) [a](b.md#again-1) [a](#own) [a](https://c.d/e) `[a](no.md)`\n# Own\n"
    bad = '[a](c.md) [a](b.md#again-2) [a](b.md#no-heading) [a](#other) <a href="d.md"><img src="e.png"></a>\n'
    page = tmp_path / "a.md"
    page.write_text(good + bad, encoding="utf-8")
    assert broken(page) == ["c.md", "b.md#again-2", "b.md#no-heading", "#other", "d.md", "e.png"]


def test_every_link_and_anchor_of_every_page_leads_somewhere(site):
    checked = [ROOT / page for page in site.pages()]
    assert len(checked) > 40
    assert sum(len(targets(page)) for page in checked) > 200
    assert {str(page.relative_to(ROOT)): found for page in checked if (found := broken(page))} == {}


def test_every_page_is_in_one_chapter(site):
    listed = [page for names in site.chapters().values() for page in names]
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    written |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")}
    written |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb")}
    assert len(listed) == len(set(listed))
    assert {*listed, site.INDEX} == written


def test_chapters_are_in_the_order_of_the_index(site):
    headings = re.findall(r"^## (.+)$", (ROOT / site.INDEX).read_text(encoding="utf-8"), re.MULTILINE)
    chapters = site.chapters()
    assert list(chapters)[: len(headings)] == headings
    assert chapters[headings[0]][0] == "docs/use/results.md"


def test_the_reference_has_every_analysis_with_public_names(site):
    listed = site.modules()
    for path in (ROOT / "vlmprobe" / "analysis").glob("[!_]*.py"):
        module = importlib.import_module(f"vlmprobe.analysis.{path.stem}")
        if module.__name__ == f"vlmprobe.analysis.{path.stem}":  # not one that has moved
            assert (module.__name__ in listed) is hasattr(module, "__all__")
    assert {"vlmprobe", "vlmprobe.analysis.calibration", "vlmprobe.testing"} < set(listed)


def test_what_the_site_changes_of_a_page(site):
    known = {"docs/use/a.md", "README.md", "notebooks/n.ipynb"}
    text = (
        '[a](../../README.md#x) <a href="a.md#y"> [n](../../notebooks/n.ipynb)\n'
        "[s](../../setup.py) [h](https://b.c) [k](#k)\n"
        "```python\n[s](../../setup.py)\n```\n"
        '<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="../img/d.png">\n'
        '  <img src="../img/l.png" alt="what">\n</picture>\n'
    )
    assert site.for_the_site(text, "docs/use/a.md", known, "R") == (
        '[a](../../README.md#x) <a href="a.html#y"> [n](../../notebooks/n.ipynb)\n'
        "[s](R/blob/main/setup.py) [h](https://b.c) [k](#k)\n```python\n[s](../../setup.py)\n```\n"
        '<img class="only-light" src="../img/l.png" alt="what">\n'
        '<img class="only-dark" src="../img/d.png" alt="what">\n'
    )


class Seen(HTMLParser):
    """Names that can be linked to, links, and what a page loads when it is opened."""

    def __init__(self):
        super().__init__()
        self.names, self.links, self.loads = set(), [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.names |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "index", "search"):
            self.loads.append(given.get("href", ""))
        elif given.get("src"):
            self.loads.append(given["src"])


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_all_its_links_lead_somewhere(site, tmp_path, monkeypatch):
    """Where Sphinx is installed (make docs); links as a browser follows them, HTML of pages included."""
    if any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_nb")):
        pytest.skip("needs the group docs")
    places = f"import build_site as b; from pathlib import Path; b.SOURCE, b.OUT = Path({str(tmp_path / 'source')!r}), "
    code = f"{places}Path({str(tmp_path / 'out')!r}); raise SystemExit(b.main())"
    paths = os.pathsep.join([str(SCRIPT.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    out = tmp_path / "out"
    seen = {}
    for path in out.rglob("*.html"):
        seen[path] = Seen()
        seen[path].feed(path.read_text(encoding="utf-8"))
    assert len(seen) > len(site.pages())
    foreign, missing = set(), set()
    for path, found in seen.items():
        foreign |= {each for each in found.loads if urlsplit(each).netloc}
        for link in (*found.links, *found.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            named = unquote(parts.fragment)
            if not there.is_file() or (named and there in seen and named not in seen[there].names):
                missing.add((path.relative_to(out).as_posix(), link))
    assert foreign == set(), "nothing is loaded from elsewhere"
    assert missing == set()
