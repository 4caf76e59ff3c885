"""The site of ``make docs``: every page is on it, every link leads somewhere, and it builds without a warning."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from urllib.parse import unquote

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
    assert chapters[headings[0]][:2] == ["docs/use/page.md", "docs/use/results.md"]


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


def test_what_a_built_page_loads_and_links_to_is_checked(site, tmp_path):
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="s.css"><script src="https://c.d/e.js"></script><h1 id="one">1</h1>'
        '<a href="b.html#two">b</a> <a href="b.html#three">b</a> <a href="#one">a</a> <a href="#no">a</a>'
        '<a href="https://c.d">c</a> <a href="c.html">c</a> <img src="data:image/png;base64,AA"> <img src="p%20q.png">',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<h1 id="two">2</h1>', encoding="utf-8")
    (tmp_path / "s.css").write_text("", encoding="utf-8")
    (tmp_path / "p q.png").write_bytes(b"")
    assert site.objections(tmp_path) == [
        "a.html loads https://c.d/e.js",
        "a.html leads to b.html#three, which is not there",
        "a.html leads to #no, which is not there",
        "a.html leads to c.html, which is not there",
    ]


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_all_its_links_lead_somewhere(site, tmp_path):
    """Where Sphinx is installed; it is what make docs does."""
    if any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_nb")):
        pytest.skip("needs the group docs")
    places = f"b.SOURCE, b.OUT = Path({str(tmp_path / 'source')!r}), Path({str(tmp_path / 'out')!r})"
    code = f"import build_site as b; from pathlib import Path; {places}; raise SystemExit(b.main())"
    paths = os.pathsep.join([str(SCRIPT.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, there = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert len(list((tmp_path / "out").rglob("*.html"))) > len(site.pages()) + len(site.modules())
