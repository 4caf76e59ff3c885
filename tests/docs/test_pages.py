"""The pages on candidates, ranking, heads and decoding: their Python runs as written, their pictures are there."""

from __future__ import annotations

import re
import runpy
import shutil

import pytest
from common import DOCS

from vlmprobe.demo import sample_images

PAGES = ("candidates", "rank", "heads", "decoding")


@pytest.mark.parametrize("page", [*PAGES, "tables"])
def test_python_of_the_page_runs_in_order_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shutil.copy(sample_images()[0], tmp_path / "scene.png")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "use" / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    script = tmp_path / f"{page}.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    runpy.run_path(str(script))


@pytest.mark.parametrize("page", PAGES)
def test_figures_were_written_and_pictures_drawn(page):
    text = (DOCS / "use" / f"{page}.md").read_text(encoding="utf-8")
    written = re.findall(r"<!-- [\w -]+, written by tools/docs/draw_asking.py -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert written
    assert all(part.strip() for part in written)
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert shown
    assert all((DOCS / "use" / name).is_file() for name in shown)
    assert all(alt.strip() for alt in re.findall(r'alt="([^"]*)"', text))


def test_scripts_find_the_parts_that_they_write(tmp_path):
    """Every part of a page that a script writes names that script, and is found by it."""
    shutil.copytree(DOCS / "use", tmp_path / "use")
    write = runpy.run_path(str(DOCS.parent / "tools" / "docs" / "draw_confidence.py"))["write"]
    write.__globals__["DOCS"] = tmp_path
    parts = [
        (path.stem, part, script)
        for path in sorted((tmp_path / "use").glob("*.md"))
        for part, script in re.findall(r"<!-- ([^,>]+), written by (\S+) -->", path.read_text(encoding="utf-8"))
    ]
    assert len(parts) > 5
    for page, part, script in parts:
        assert (DOCS.parent / script).is_file(), f"{page}: {script}"
        write(page, part, ["written anew"], script=script.removeprefix("tools/docs/").removesuffix(".py"))
        assert "written anew" in (tmp_path / "use" / f"{page}.md").read_text(encoding="utf-8")
